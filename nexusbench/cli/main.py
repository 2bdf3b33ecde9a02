"""The Typer app and ``entry()``: every outcome is one clear line and the matching exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

import typer

from nexusbench import __version__
from nexusbench.cli._flags import STATISTIC_BOUND
from nexusbench.cli.advise import advise
from nexusbench.cli.capacity import capacity
from nexusbench.cli.check_model import check_model
from nexusbench.cli.compare import compare
from nexusbench.cli.doctor import doctor
from nexusbench.cli.explain import explain
from nexusbench.cli.gate import app as gate_app
from nexusbench.cli.list_plugins import list_plugins
from nexusbench.cli.model import app as model_app
from nexusbench.cli.outlet import heeding_signals, outlets, silence, warnings_on_stderr
from nexusbench.cli.pays import pays
from nexusbench.cli.profile import app as profile_app
from nexusbench.cli.regret import regret
from nexusbench.cli.report import report
from nexusbench.cli.reproduce import reproduce
from nexusbench.cli.rerun import rerun
from nexusbench.cli.serve_trace import serve_trace
from nexusbench.cli.sweep import sweep
from nexusbench.cli.timeline import timeline
from nexusbench.cli.trace import app as trace_app
from nexusbench.cli.validate import app as validate_app
from nexusbench.core.errors import NexusbenchError
from nexusbench.core.outputs import FAULTS_OF_A_DISK
from nexusbench.core.registry import plugin_fault

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
_LONGEST = 200  # characters of a file's name
_LONGEST_ERROR = 2000  # the traceback has the rest of a longer one
# Errors that are about a file name given by the user: usage errors.
_UNUSABLE = (
    errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOENT, errno.ENOTDIR,
    errno.EISDIR, errno.EEXIST,
)  # fmt: skip
# Errors of a full or broken disk, a closed terminal, or a stream that was opened for reading.
_NO_ROOM = (*FAULTS_OF_A_DISK, errno.EBADF)
# Typer brings its own copy of Click from 0.16 on: the base class of its errors is the one to catch.
_ClickError: type[Exception] = next(
    cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException"
)

app = typer.Typer(
    name="nexusbench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve-trace")(serve_trace)
app.command("compare")(compare)
app.command("rerun")(rerun)
app.command("explain")(explain)
app.command("report")(report)
app.command("timeline")(timeline)
app.command("regret")(regret)
app.command("sweep")(sweep)
app.command("capacity")(capacity)
app.command("advise")(advise)
app.command("reproduce")(reproduce)
app.command("pays")(pays)
app.add_typer(trace_app, name="trace")
app.add_typer(profile_app, name="profile")
app.add_typer(validate_app, name="validate")
app.add_typer(model_app, name="model")
app.command("check-model")(check_model)
app.add_typer(gate_app, name="gate")
app.command("list")(list_plugins)
app.command("doctor")(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"nexusbench {__version__}")
        raise typer.Exit


@app.callback()
def nexusbench(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Show the traceback of an error (anywhere; or NEXUSBENCH_DEBUG=1)."
        ),
    ] = False,
) -> None:
    """How should prefill and decode share a GPU, and what does each way of scheduling cost?

    One serving engine with pluggable schedulers replays a trace on simulated GPUs.
    Results go to stdout; progress, warnings and errors to stderr.

    Exit codes: 0 ok, 1 failed (rerun: it differs; sweep: a cell did), 2 usage or bad input, 3 a
    regression (gate), a broken --bound (validate), drift (profile check) or a model that differs
    (check-model), 4 nothing for rerun to compare with, or the gate cannot tell, 5 the gate has no
    usable baseline, 130 interrupted (143 by SIGTERM, 129 by a hangup).
    """


def entry() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal's encoding lacks is replaced instead of raising.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    with outlets(), heeding_signals() as heard:
        return heard.code(_main(arguments))


def _main(arguments: list[str]) -> int:
    # Accepted anywhere on the line, since it is usually added to a command that just failed.
    debug = "--debug" in arguments or os.environ.get("NEXUSBENCH_DEBUG", "") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = _call(expand_goodput(plain_names(arguments)))
    except SystemExit as stop:
        if fault := plugin_fault(stop):
            return _report(str(fault), fault.exit_code, debug)
        if debug and stop.__cause__ is not None:
            traceback.print_exception(stop.__cause__)
        return stop.code if isinstance(stop.code, int) else EXIT_FAILED
    except (KeyboardInterrupt, typer.Abort):
        return _report("interrupted", EXIT_INTERRUPTED, debug)
    except NexusbenchError as error:
        return _report(str(error), error.exit_code, debug)
    except _ClickError as error:
        return _usage_error(error, arguments, debug)
    except BaseException as error:  # a plug-in may raise any kind
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            silence(sys.stdout)
            place = error.filename or "the output"
            return _report(f"cannot write {place}: {error.strerror}", EXIT_FAILED, debug)
        if isinstance(error, OSError) and error.errno in _UNUSABLE and error.filename is not None:
            return _report(f"{_short(error.filename)}: {error.strerror}", EXIT_USAGE, debug)
        if isinstance(error, MemoryError):
            return _report("there is not enough memory for this", EXIT_FAILED, debug)
        if fault := plugin_fault(error):
            hint = "" if debug else ". Add --debug for the traceback"
            return _report(f"{fault}{hint}", fault.exit_code, debug)
        hint = "" if debug else ". Add --debug for the traceback, and please report it"
        return _report(f"unexpected {type(error).__name__}: {error}{hint}", EXIT_FAILED, debug)
    if code == EXIT_INTERRUPTED:
        # Commands end with SystemExit; this code is from Typer's own handling of Ctrl-C.
        return _report("interrupted", EXIT_INTERRUPTED, debug)
    return code if isinstance(code, int) else 0


def _short(name: object) -> str:
    """A file's name; the end of a long one."""
    text = str(name)
    return text if len(text) <= _LONGEST else f"...{text[-_LONGEST:]}"


def _call(arguments: list[str]) -> object:
    """Run the command and flush stdout, so that a failed write is an error of the command."""
    try:
        with warnings_on_stderr():
            code = _command()(arguments, prog_name="nexusbench", standalone_mode=False)
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return code


@cache
def _command() -> Callable[..., object]:
    """The app as Click commands, built once: they are derived from every signature."""
    command = typer.main.get_command(app)
    tidy(command)
    return command


def _usage_error(error: Exception, arguments: list[str], debug: bool) -> int:
    """A wrong flag or argument; a call without a command prints the help and is no error."""
    context = getattr(error, "ctx", None)
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    if type(error).__name__ == "NoArgsIsHelpError":
        # Newer versions have printed the help already and leave the message empty.
        if message:
            print(message)
        return 2
    where = context.command_path if context is not None else _command_path(arguments)
    sentence = message.rstrip()
    sentence += "" if sentence.endswith((".", "?")) else "."
    return _report(f"{sentence} See {where} --help", getattr(error, "exit_code", 2), debug)


def _command_path(arguments: list[str]) -> str:
    """The command named by ``arguments``; errors of Click's parser do not contain it."""
    command: object = _command()
    words = ["nexusbench"]
    for argument in arguments:
        command = getattr(command, "commands", {}).get(argument)
        if command is None:
            break
        words.append(argument)
    return " ".join(words)


def _report(message: str, code: int, debug: bool) -> int:
    if debug and sys.exc_info()[0] is not None:
        traceback.print_exc()
    line = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
    if len(line) > _LONGEST_ERROR:  # it quotes a long value
        line = f"{line[: _LONGEST_ERROR - 400]} [...] {line[-300:]}"
    print(f"error: {line}", file=sys.stderr)
    return code


# -- the command line as it is typed, and the help as it is shown ----------------------------------

# vLLM's names of two flags, which are not declared: help of 80 columns has no room for them.
_PLAIN = {
    "--enable-prefix-caching": "--prefix-caching",
    "--no-enable-prefix-caching": "--no-prefix-caching",
}


def plain_names(arguments: list[str]) -> list[str]:
    """``arguments`` with vLLM's names of flags replaced by ours, up to a ``--``."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [_PLAIN.get(argument, argument) for argument in arguments[:end]] + arguments[end:]


def expand_goodput(arguments: list[str]) -> list[str]:
    """Repeat ``--goodput`` before each further ``name:number`` or ``name:p99<number``.

    A trace path is not mistaken for a bound: it would have to be a word, a colon and a number.
    """
    expanded: list[str] = []
    listing = False
    for position, argument in enumerate(arguments):
        if argument == "--":
            return expanded + arguments[position:]
        if listing and _is_bound(argument):
            if expanded[-1] != "--goodput":
                expanded.append("--goodput")
        else:
            listing = argument == "--goodput" or argument.startswith("--goodput=")
        expanded.append(argument)
    return expanded


def _is_bound(text: str) -> bool:
    if STATISTIC_BOUND.fullmatch(text):
        return True
    name, colon, number = text.partition(":")
    if not colon or not name.isidentifier():
        return False
    try:
        float(number)
    except ValueError:
        return False
    return True


def tidy(command: Any) -> None:
    """Prepare the help texts of a Click ``command`` and of all below it.

    Typer keeps the line breaks of the source, and takes ``[sim]`` for markup of Rich, which then
    shows nothing at all.
    """
    command.help = _plain(command.help)
    for parameter in command.params:
        parameter.help = _plain(getattr(parameter, "help", None))
    for below in getattr(command, "commands", {}).values():
        tidy(below)


def _plain(text: str | None) -> str | None:
    if text is None:
        return None
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return "\n\n".join(paragraphs).replace("[", "\\[")
