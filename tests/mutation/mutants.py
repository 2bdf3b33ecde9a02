"""Every small change that could be made to a file, each with a name that survives edits elsewhere.

A mutant is found again by file, function, kind of change, the statement's text and the changed
piece of it, never by its line: an edit of one function renames nothing in another.
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "nexusbench"

AREAS: dict[str, tuple[str, ...]] = {
    "engine": ("engine/*.py",),
    "kv": ("kv/*.py", "serving/opening.py"),
    "schedulers": ("schedulers/*.py", "planning/*.py"),
    "partitioners": ("partitioners/*.py", "policies/*.py"),
    "physics": ("physics/*.py", "devices/sim.py"),
    "costs": ("costs/*.py", "profiles/*.py", "serving/following.py"),
    "workloads": ("workloads/*.py",),
    "metrics": ("metrics/*.py",),
    "gates": ("gates/*.py",),
}

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.Pow: ast.Mult, ast.BitXor: ast.BitAnd,
}  # fmt: skip
LARGE = 50  # one more or less would be lost in the noise; such constants are doubled and halved
OPPOSITE = {"min": "max", "max": "min", "any": "all", "all": "any"}
OPPOSITE_ATTRIBUTE = {"maximum": "minimum", "minimum": "maximum", "floor": "ceil", "ceil": "floor"}
# Words about how a structure is kept or a file is written, not about what is computed.
SILENT_KEYWORDS = {"strict", "gc", "frozen", "kw_only", "repr", "indent", "exist_ok", "copy"}
PLAIN_WORDS = {"__repr__", "__str__", "__dir__"}


@dataclass(frozen=True)
class Mutant:
    """One change. ``position`` and ``variant`` say how to make it in the text it was found in."""

    area: str
    file: str
    function: str
    kind: str
    statement: str
    change: str
    line: int
    first_line: int  # of the statement, by which the tests that run it are found
    ordinal: int
    position: int = field(compare=False)
    variant: int = field(compare=False)

    @property
    def key(self) -> str:
        """Ten characters that are the same as long as the statement is."""
        return self._hashed(self.kind, self.change)

    @property
    def place(self) -> str:
        """The statement it is in: of two mutants of one statement a sample holds one."""
        return self._hashed()

    def _hashed(self, *more: str) -> str:
        parts = (self.file, self.function, self.statement, str(self.ordinal), *more)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]

    @property
    def module(self) -> str:
        """Its dotted name."""
        return self.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


Apply = Callable[[ast.AST], ast.AST | None]  # the node to put in its place


@dataclass
class _Site:
    """A node that can be changed, where it stands, and its changes."""

    node: ast.AST
    statement: ast.stmt
    function: str
    changes: list[tuple[str, Apply]]


def area_files(area: str) -> list[Path]:
    """The files of an area, in order."""
    found: set[Path] = set()
    for glob in AREAS[area]:
        here = set(PACKAGE.glob(glob))
        if not here:
            raise FileNotFoundError(f"area {area}: there is no {glob} any more")
        found |= here
    return sorted(found)


def mutants_of(area: str, path: Path, text: str | None = None) -> list[Mutant]:
    """All mutants of a file, in the order of its text."""
    source = path.read_text(encoding="utf-8") if text is None else text
    file = str(path.relative_to(ROOT))
    tree = ast.parse(source)
    position = {id(node): index for index, node in enumerate(ast.walk(tree))}
    statements: dict[int, int] = {}
    twins: Counter[tuple[str, str]] = Counter()
    found = []
    seen: Counter[tuple[int, str, str]] = Counter()
    for site in _sites(tree):
        header = _header(site.statement)
        which = id(site.statement)
        if which not in statements:
            statements[which] = twins[site.function, header]
            twins[site.function, header] += 1
        for variant, (kind, apply) in enumerate(site.changes):
            before = ast.unparse(site.node)
            after = apply(copy.deepcopy(site.node))
            told = "(removed)" if after is None else ast.unparse(ast.fix_missing_locations(after))
            change = f"{_short(before)} -> {_short(told)}"
            again = seen[which, kind, change]
            seen[which, kind, change] += 1
            if again:
                change += f" ({again + 1})"
            line = getattr(site.node, "lineno", site.statement.lineno)
            found.append(
                Mutant(
                    area, file, site.function, kind, header, change, line, site.statement.lineno,
                    statements[which], position[id(site.node)], variant,
                )
            )  # fmt: skip
    return found


def mutated(mutant: Mutant, text: str) -> ast.Module:
    """The file's tree with the change made."""
    tree = ast.parse(text)
    node = next(n for i, n in enumerate(ast.walk(tree)) if i == mutant.position)
    site = next(site for site in _sites(tree) if site.node is node)
    _, apply = site.changes[mutant.variant]
    # Changes may refer to the node's parts, never to a copy of them: it is made in place.
    replacement = apply(node)
    if replacement is None:
        replacement = ast.copy_location(ast.Pass(), node)
    if replacement is not node:
        _Replace(node, ast.copy_location(replacement, node)).visit(tree)
    return ast.fix_missing_locations(tree)


def text_of(mutant: Mutant) -> str:
    """The file that it is a mutant of."""
    return (ROOT / mutant.file).read_text(encoding="utf-8")


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else super().visit(node)


def _short(text: str) -> str:
    return text if len(text) <= 160 else text[:157] + "..."


def _header(statement: ast.stmt) -> str:
    """A statement's own text, without the statements inside it."""
    bare = copy.copy(statement)
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        if isinstance(getattr(bare, name, None), list):
            setattr(bare, name, [ast.Pass()] if name == "body" else [])
    if isinstance(bare, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        bare.decorator_list = []
    if isinstance(bare, ast.Try):
        return "try:"
    return ast.unparse(ast.fix_missing_locations(bare))


def _sites(tree: ast.Module) -> Iterator[_Site]:
    yield from _body(tree.body, "", inside=False)


def _body(body: list[ast.stmt], function: str, inside: bool) -> Iterator[_Site]:
    for index, statement in enumerate(body):
        is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if is_docstring or isinstance(
            statement,
            ast.Import | ast.ImportFrom | ast.Assert | ast.Global | ast.Nonlocal | ast.Pass,
        ):
            continue
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            if statement.name in PLAIN_WORDS:
                continue
            named = f"{function}.{statement.name}".lstrip(".")
            for default in (*statement.args.defaults, *statement.args.kw_defaults):
                if default is not None:
                    yield from _expression(default, statement, named, "default")
            yield from _body(statement.body, named, inside=True)
        elif isinstance(statement, ast.ClassDef):
            yield from _body(statement.body, f"{function}.{statement.name}".lstrip("."), False)
        elif not _is_typing(statement):
            alone = len(body) == 1 and index == 0
            yield from _statement(statement, function, inside, alone)


def _is_typing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test)


def _statement(statement: ast.stmt, function: str, inside: bool, alone: bool) -> Iterator[_Site]:
    whole = list(_whole(statement))
    if whole:
        yield _Site(statement, statement, function, whole)
    if isinstance(statement, ast.Raise):
        return  # its words are tested where they matter
    kind = "constant" if inside or not isinstance(statement, ast.AnnAssign) else "default"
    for name in ("test", "iter", "value", "subject"):
        child = getattr(statement, name, None)
        if isinstance(child, ast.expr):
            if name == "test":
                yield _Site(child, statement, function, [("condition", _negated)])
            yield from _expression(child, statement, function, kind)
    if isinstance(statement, ast.AugAssign | ast.Assign | ast.Delete):
        targets = [statement.target] if isinstance(statement, ast.AugAssign) else statement.targets
        for target in targets:
            yield from _expression(target, statement, function, kind)
    if isinstance(statement, ast.With):
        for item in statement.items:
            yield from _expression(item.context_expr, statement, function, kind)
    for name in ("body", "orelse", "finalbody"):
        yield from _body(getattr(statement, name, None) or [], function, inside)
    for handler in getattr(statement, "handlers", []):
        yield from _body(handler.body, function, inside)
    for case in getattr(statement, "cases", []):
        yield from _body(case.body, function, inside)


def _whole(statement: ast.stmt) -> Iterator[tuple[str, Apply]]:
    """Changes of a statement as a whole."""
    match statement:
        case (
            ast.Raise(exc=ast.Name(id="NotImplementedError"))
            | ast.Raise(exc=ast.Call(func=ast.Name(id="NotImplementedError")))
        ):
            return  # what a subclass must write is no code of its own
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Delete():
            yield "remove", _nothing
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_]):
            yield "remove", _nothing
        case ast.AugAssign(op=op):
            yield "remove", _nothing
            if type(op) in ARITHMETIC:
                yield "arithmetic", _other_operator
        case ast.Break():
            yield "loop", lambda node: ast.Continue()
        case ast.Continue():
            yield "loop", lambda node: ast.Break()
            yield "remove", _nothing
        case ast.Return(value=None):
            yield "remove", _nothing
        case ast.Return(value=value) if not (
            isinstance(value, ast.Constant) and value.value in (None, 0, False)
        ):
            yield "return", _returning(None)
            yield "return", _returning(0)


def _nothing(node: ast.AST) -> None:
    return None


def _returning(value: object) -> Apply:
    return lambda node: ast.Return(ast.Constant(value))


def _negated(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.expr)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return node.operand
    return ast.UnaryOp(ast.Not(), node)


def _other_operator(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.AugAssign | ast.BinOp)
    node.op = ARITHMETIC[type(node.op)]()
    return node


def _expression(node: ast.AST, statement: ast.stmt, function: str, kind: str) -> Iterator[_Site]:
    changes = list(_changes(node, kind))
    if changes:
        yield _Site(node, statement, function, changes)
    for child in _parts(node):
        yield from _expression(child, statement, function, kind)


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """What is inside an expression, less names of types, words and formats."""
    if isinstance(node, ast.JoinedStr):
        return
    named = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
    if named in ("cast", "TypeVar", "isinstance", "getattr", "hasattr"):
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.keyword):
            if child.arg not in SILENT_KEYWORDS:
                yield child.value
        elif isinstance(child, ast.expr | ast.comprehension | ast.slice):
            yield child


def _changes(node: ast.AST, kind: str) -> Iterator[tuple[str, Apply]]:
    match node:
        case ast.Compare(ops=ops):
            for index, op in enumerate(ops):
                if type(op) in COMPARISONS:
                    yield "compare", _compared(index)
        case ast.BinOp(op=op) if type(op) in ARITHMETIC and not _is_words(node):
            yield "arithmetic", _other_operator
        case ast.BoolOp():
            yield "boolean", _other_boolean
        case ast.UnaryOp(op=ast.Not()):
            yield "negation", _negated
        case ast.UnaryOp(op=ast.USub()):
            yield "arithmetic", lambda minus: minus.operand  # type: ignore[attr-defined]
        case ast.IfExp():
            yield "condition", _other_branch
        case ast.Constant(value=bool(value)):
            yield kind, lambda constant: ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            if abs(value) < LARGE:
                yield kind, lambda constant: ast.Constant(value + 1)
                yield kind, lambda constant: ast.Constant(value - 1)
            else:
                yield kind, lambda constant: ast.Constant(value * 2)
                half = value // 2 if isinstance(value, int) else value / 2
                yield kind, lambda constant: ast.Constant(half)
        case ast.Call():
            yield from _calls(node)
        case ast.comprehension(ifs=[_, *_]):
            yield "condition", _unfiltered


def _is_words(node: ast.BinOp) -> bool:
    """Whether it joins or formats strings, as far as one can see."""
    sides = (node.left, node.right)
    return any(
        isinstance(side, ast.JoinedStr)
        or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in sides
    )


def _compared(index: int) -> Apply:
    def apply(node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.Compare)
        node.ops[index] = COMPARISONS[type(node.ops[index])]()
        return node

    return apply


def _other_boolean(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.BoolOp)
    node.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
    return node


def _other_branch(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.IfExp)
    node.body, node.orelse = node.orelse, node.body
    return node


def _unfiltered(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.comprehension)
    del node.ifs[0]
    return node


def _calls(node: ast.Call) -> Iterator[tuple[str, Apply]]:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    attribute = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    if name in OPPOSITE or attribute in OPPOSITE_ATTRIBUTE:
        yield "minmax", _opposite
    for keyword in node.keywords:
        if keyword.arg in ("key", "reverse") and (
            name in ("sorted", "min", "max") or attribute == "sort"
        ):
            yield "order", _without(keyword.arg)
    if name == "sorted" and len(node.args) == 1:
        yield "order", lambda call: ast.Call(ast.Name("list", ast.Load()), call.args[:1], [])  # type: ignore[attr-defined]
    commutes = name in (*OPPOSITE, "isinstance", "getattr", "hasattr", "setattr", "print", "cast")
    plain = not any(isinstance(argument, ast.Starred) for argument in node.args)
    if len(node.args) == 2 and plain and not commutes and attribute not in OPPOSITE_ATTRIBUTE:
        yield "arguments", _swapped


def _opposite(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.Call)
    if isinstance(node.func, ast.Name):
        node.func.id = OPPOSITE[node.func.id]
    elif isinstance(node.func, ast.Attribute):
        node.func.attr = OPPOSITE_ATTRIBUTE[node.func.attr]
    return node


def _without(name: str) -> Apply:
    def apply(node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.Call)
        node.keywords = [keyword for keyword in node.keywords if keyword.arg != name]
        return node

    return apply


def _swapped(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.Call)
    node.args.reverse()
    return node
