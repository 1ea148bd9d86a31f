"""Decides how every command ends: what --json and --report get, and which exit code. Knows no command.

Data goes to stdout, talk to stderr, and with --quiet only what is wrong. A refusal of the tree exits with its own code;
anything unexpected is a defect and exits 1 with its traceback. What is printed obeys no terminal but its own: see
`errors.printable`. Files that were asked for are written last, so that nothing that a command found out is lost with
them. What cannot be printed, because the disk is full or nobody reads the pipe any more, is an error like a file that
cannot be written, and no traceback.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO, runtime_checkable

import click

from .. import canonical_json
from ..errors import ShardmergeError, printable
from ..versions import version_of
from . import termination, written_files
from .arguments import FILE

INTERRUPTED = 130
TERMINATED = 143
FAILED = 1
QUIET = "shardmerge.quiet"  # in the meta of click's context: whether this command may talk
HELP = {"help_option_names": ["-h", "--help"]}  # context settings of every command, however it is reached
REST_IS_DONE = "Everything else was done."
DEFECT = "This is a defect of shardmerge. Please report it with the lines above."


class Outcome(Protocol):
    """What a command found out, as `facts` for machines and as `text` for people."""

    def facts(self) -> dict[str, Any]: ...

    def text(self) -> str: ...


@runtime_checkable
class WithFiles(Protocol):
    """An outcome that was asked for in files too."""

    def files(self) -> Mapping[Path, bytes]: ...


@runtime_checkable
class WithScope(Protocol):
    """An outcome that says what was checked, and what not."""

    def scope(self) -> tuple[Sequence[str], Sequence[str]]: ...


class OutcomeWithScope(Outcome, WithScope, Protocol):
    """An outcome that says, beside facts and text, what was checked, and what not."""


@runtime_checkable
class WithExitCode(Protocol):
    """An outcome that the caller wants to see in the exit code, and that is not a refusal."""

    exit_code: int


@dataclass(frozen=True, slots=True)
class End:
    """An outcome or a refusal, ready to be printed and written."""

    exit_code: int
    facts: dict[str, Any]
    text: str
    files: Mapping[Path, bytes] = field(default_factory=dict)
    refused: bool = True


class CallersError(Exception):
    """A function that the user named raised the exception that this one is from: a defect, but not of shardmerge."""


def reported(
    run: Callable[..., Outcome], *, report_path: Callable[[Path], Path] = lambda path: path
) -> Callable[..., None]:
    """Give a click command --json, --report and --quiet, and turn what it returns or raises into output and exit code.

    `report_path` makes the name of the report from the one given: many processes may run the same command.
    """

    @click.option("--report", type=FILE, help="Write the outcome to FILE as JSON.")
    @click.option("--json", "as_json", is_flag=True, help="Print the outcome to stdout as JSON.")
    @click.option("-q", "--quiet", is_flag=True, help="Print what is wrong, and nothing else.")
    @functools.wraps(run)
    def command(*, as_json: bool, report: Path | None, quiet: bool, **options: Any) -> None:
        if report is not None:
            refuse_unwritable(report, "--report")
            _refuse_file_of_another_option(report)
        click.get_current_context().meta[QUIET] = quiet
        end = _identified(_run(lambda: run(**options)))
        wrong = list(_errors_of_printing(end, as_json=as_json, quiet=quiet))
        files = dict(end.files)
        if report is not None:
            files[report_path(report)] = canonical_json.readable(end.facts, indent=2)
        wrong += [error for path, data in files.items() if (error := _error_of_writing(path, data))]
        for error in wrong:
            _print(printable.lines(f"Error: {error}. {REST_IS_DONE}"), sys.stderr)
        click.get_current_context().exit(end.exit_code or (FAILED if wrong else 0))

    return command


def _identified(end: End) -> End:
    """Add to the facts of an end what all have, as `outcome_schema` describes it."""
    info = click.get_current_context().info_name
    own = {
        "schema_version": 1,
        "shardmerge": version_of("shardmerge"),
        "command": info,
        "ok": end.exit_code == 0,
    }
    return replace(end, facts={"checked": [], "unchecked": []} | own | end.facts)


def talk() -> TextIO | None:
    """Return where the command that runs may talk to a person: stderr, or nowhere with --quiet."""
    context = click.get_current_context(silent=True)
    return None if context and context.meta.get(QUIET) else sys.stderr


def refuse_unwritable(file: Path, option: str) -> None:
    """Say before hours of work that the file of an option cannot be written, not after. Raises click.BadParameter."""
    folder, where = file.absolute().parent, printable.one_line(str(file))
    if not folder.is_dir():
        reason = f"{printable.one_line(str(file.parent))} is not a directory."
    elif not os.access(file if file.exists() else folder, os.W_OK):
        reason = f"{where} cannot be written."
    else:
        return
    raise click.BadParameter(reason, param_hint=option)


def _refuse_file_of_another_option(report: Path) -> None:
    """Raise click.BadParameter if another option names the file of --report: one of both would be lost."""
    context, real = click.get_current_context(), os.path.realpath(report)
    if os.path.exists(real) and not os.path.isfile(real):
        return  # a device or a FIFO takes both
    for option in context.command.params:
        file = context.params[option.name or ""]
        if option.name != "report" and isinstance(file, Path) and os.path.realpath(file) == real:
            reason = f"{printable.one_line(str(report))} is what {option.get_error_hint(context)} names, too."
            raise click.BadParameter(reason, param_hint="--report")


def _errors_of_printing(end: End, *, as_json: bool, quiet: bool) -> Iterator[OSError]:
    """Print an outcome. Yields what went wrong with stdout."""
    if as_json:
        yield from _print(canonical_json.readable(end.facts).decode().removesuffix("\n"), sys.stdout)
    if end.text and end.refused:
        _print(printable.lines(end.text), sys.stderr)
    elif end.text and not as_json and not quiet:
        yield from _print(printable.coloured_lines(end.text), sys.stdout)


def _print(text: str, stream: TextIO | None) -> list[OSError]:
    """Print a text and the end of its line, with colours if the stream is a terminal that is to show them.

    Returns what went wrong. Nothing is left in the buffer then: Python would try it again when it ends, and fail.
    """
    name = "stderr" if stream is sys.stderr else "stdout"
    try:
        if stream is None:  # it was closed before this process began
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        click.echo(text, file=stream, color=None if _may_colour() else False)
    except OSError as error:
        if stream is not None:
            _forget(stream)
        error.filename = name
        return [error]
    return []


def _forget(stream: TextIO) -> None:
    """Let what a stream still holds go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def not_printed(error: OSError) -> int:
    """Say that a text of click's own, such as help, could not be printed. Returns the exit code of the command."""
    _forget(sys.stdout)
    _print(printable.lines(f"Error: {error}"), sys.stderr)
    return FAILED


def _may_colour() -> bool:
    """Whether the person at the terminal did not ask for a text without colours. Source: https://no-color.org"""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _error_of_writing(path: Path, data: bytes) -> OSError | None:
    """Write a file that was asked for. Returns what went wrong."""
    try:
        written_files.write(path, data)
    except OSError as error:
        return error
    return None


def _run(run: Callable[[], Outcome]) -> End:
    try:
        with termination.raising():
            outcome = run()
    except ShardmergeError as error:
        remarks = getattr(error, "__notes__", [])
        facts = error.facts() | ({"remarks": remarks} if remarks else {})
        return End(error.exit_code, facts, "\n".join([f"Error: {error.message()}", *remarks]))
    except termination.TerminatedError:
        return _end(TERMINATED, "Terminated", "Ended by SIGTERM.")
    except KeyboardInterrupt:
        return _end(INTERRUPTED, "Interrupted", "Interrupted.")
    except OSError as error:
        return _end(FAILED, type(error).__name__, f"Error: {error}")
    except click.UsageError:
        raise
    except Exception as error:  # the one place that catches everything: it reports, and fails
        return _unexpected(error)
    checked, unchecked = outcome.scope() if isinstance(outcome, WithScope) else ((), ())
    exit_code = outcome.exit_code if isinstance(outcome, WithExitCode) else 0
    return End(
        exit_code=exit_code,
        facts={"exit_code": exit_code, "checked": list(checked), "unchecked": list(unchecked)}
        | outcome.facts(),
        text=outcome.text(),
        files=outcome.files() if isinstance(outcome, WithFiles) else {},
        refused=False,
    )


def _unexpected(error: Exception) -> End:
    """Return a defect of shardmerge, or of a function that the user named: its traceback then begins there."""
    shown: BaseException = error
    whose, cause = DEFECT, error.__cause__
    if isinstance(error, CallersError) and cause is not None:
        whose, shown = str(error), cause.with_traceback(_beyond_ours(cause.__traceback__))
    return _end(FAILED, type(shown).__name__, "".join(traceback.format_exception(shown)) + whose)


def _beyond_ours(begin: TracebackType | None) -> TracebackType | None:
    """Return the part of a traceback that begins where a function of the user, or a module, was entered."""
    entered = begin and begin.tb_next
    while entered and entered.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "importlib":
        entered = entered.tb_next
    return entered


def _end(exit_code: int, name: str, text: str) -> End:
    return End(exit_code, {"error": name, "exit_code": exit_code, "message": text}, text)
