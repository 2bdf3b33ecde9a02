"""Which fast test runs which line: one pass over the fast set with a mark in every block of code.

A mark is one store into a byte array, set by the code itself: no tracing, any thread, any Python.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from _pytest.assertion.rewrite import AssertionRewritingHook

MARKS = "__marks_of_tests_mutation__"
Change = Callable[[str, str], ast.Module]  # (module, text) -> tree


class Finder:
    """Loads the named modules from changed text, whoever imports them."""

    def __init__(self, paths: dict[str, Path], change: Change) -> None:
        self.paths, self.change = paths, change

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        found = self.paths.get(name)
        if found is None:
            return None
        loader = Loader(name, str(found), self.change)
        folder = [str(found.parent)] if found.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            name, found, loader=loader, submodule_search_locations=folder
        )

    def install(self) -> None:
        """Come before the finders of the interpreter, and before pytest's, which rewrites every
        module of a package that brings a plug-in, as ours does.
        """
        sys.meta_path.insert(0, self)  # type: ignore[arg-type]
        theirs = AssertionRewritingHook.find_spec

        def find_spec(hook: AssertionRewritingHook, name: str, *rest: Any) -> Any:
            return None if name in self.paths else theirs(hook, name, *rest)

        AssertionRewritingHook.find_spec = find_spec  # type: ignore[method-assign]


class Loader(importlib.machinery.SourceFileLoader):
    """A file's code with a change, never read from or kept as byte code."""

    def __init__(self, name: str, path: str, change: Change) -> None:
        super().__init__(name, path)
        self.change = change

    def get_code(self, fullname: str) -> CodeType:
        tree = self.change(fullname, Path(self.path).read_text(encoding="utf-8"))
        return compile(tree, self.path, "exec", dont_inherit=True)


class Marker:
    """Puts a mark at the start of every block, and after each statement that has blocks."""

    def __init__(self, first: int) -> None:
        self.next = first
        self.of_line: dict[int, int] = {}  # first line of a statement -> its mark

    def tree(self, text: str) -> ast.Module:
        tree = ast.parse(text)
        tree.body = self._block(tree.body, skip=True)
        return ast.fix_missing_locations(tree)

    def _block(self, body: list[ast.stmt], skip: bool = False) -> list[ast.stmt]:
        made: list[ast.stmt] = []
        mark = -1
        for index, statement in enumerate(body):
            heads = skip and (
                (index == 0 and _is_docstring(statement))
                or (isinstance(statement, ast.ImportFrom) and statement.module == "__future__")
            )
            if mark < 0 and not heads:
                mark = self.next
                self.next += 1
                made.append(_mark(mark, statement))
            self.of_line.setdefault(statement.lineno, mark)
            made.append(statement)
            if self._inside(statement):
                mark = -1
        return made

    def _inside(self, statement: ast.stmt) -> bool:
        """Mark the blocks of a statement; whether what follows needs a mark of its own."""
        for name in ("body", "orelse", "finalbody"):
            block = getattr(statement, name, None)
            if block:
                is_scope = isinstance(
                    statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
                )
                setattr(statement, name, self._block(block, skip=is_scope and name == "body"))
        for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
            part.body = self._block(part.body)
        return isinstance(statement, ast.If | ast.For | ast.While | ast.Try | ast.With | ast.Match)


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _mark(number: int, before: ast.stmt) -> ast.stmt:
    line = ast.parse(f"{MARKS}[{number}] = 1").body[0]
    for node in ast.walk(line):
        ast.copy_location(node, before)
    return line


def bits(marks: bytearray) -> bytes:
    """The marks that are set, eight to a byte."""
    import numpy as np

    return np.packbits(np.frombuffer(bytes(marks), dtype=np.uint8)).tobytes()


def clear(marks: bytearray) -> None:
    marks[:] = bytes(len(marks))


def module_name(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
