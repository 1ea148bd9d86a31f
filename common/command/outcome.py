"""Decides how every command ends: what --json and --report get, and which exit code. Knows no command.

Data goes to stdout, talk to stderr. A refusal of the tree exits with its own code; anything unexpected is a defect
and exits 1 with its traceback. What is printed obeys no terminal but its own: see `errors.printable`. Files that were
asked for are written last, so that nothing that a command found out is lost with them.
"""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import click

from .. import canonical_json
from ..errors import ShardmergeError, printable
from . import termination, written_files

INTERRUPTED = 130
TERMINATED = 143
FAILED = 1
HELP = {"help_option_names": ["-h", "--help"]}  # context settings of every command, however it is reached
REST_IS_DONE = "Everything else was done, and what was found out is said above."
DEFECT = "This is a defect of shardmerge. Please report it with the lines above."


class Outcome(Protocol):
    """What a command found out, as `facts` for machines and as `text` for people."""

    def facts(self) -> dict[str, Any]: ...

    def text(self) -> str: ...


@runtime_checkable
class WithFiles(Protocol):
    """An outcome that was asked for in files too."""

    def files(self) -> Mapping[Path, bytes]: ...


@dataclass(frozen=True, slots=True)
class End:
    """An outcome or a refusal, ready to be printed and written."""

    exit_code: int
    facts: dict[str, Any]
    text: str
    files: Mapping[Path, bytes] = field(default_factory=dict)


def reported(
    run: Callable[..., Outcome], *, report_path: Callable[[Path], Path] = lambda path: path
) -> Callable[..., None]:
    """Give a click command --json and --report, and turn what it returns or raises into output and exit code.

    `report_path` makes the name of the report from the one given: many processes may run the same command.
    """

    @click.option(
        "--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the outcome to FILE as JSON."
    )
    @click.option("--json", "as_json", is_flag=True, help="Print the outcome to stdout as JSON.")
    @functools.wraps(run)
    def command(*, as_json: bool, report: Path | None, **options: Any) -> None:
        if report is not None and not os.path.isdir(report.absolute().parent):
            # said before hours of work, not after
            where = printable.one_line(str(report.parent))
            raise click.BadParameter(f"{where} is not a directory.", param_hint="--report")
        end = _run(lambda: run(**options))
        if as_json:
            click.echo(canonical_json.readable(end.facts), nl=False)
        if end.text and (end.exit_code or not as_json):
            shown = printable.lines if end.exit_code else printable.coloured_lines
            click.echo(shown(end.text), err=bool(end.exit_code))
        files = dict(end.files)
        if report is not None:
            files[report_path(report)] = canonical_json.readable(end.facts, indent=2)
        not_written = [error for path, data in files.items() if (error := _error_of_writing(path, data))]
        for error in not_written:
            click.echo(printable.lines(f"Error: {error}. {REST_IS_DONE}"), err=True)
        click.get_current_context().exit(end.exit_code or (FAILED if not_written else 0))

    return command


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
    except Exception as error:  # the one place that catches everything: it reports, and fails
        return _end(FAILED, type(error).__name__, f"{traceback.format_exc()}{DEFECT}")
    files = outcome.files() if isinstance(outcome, WithFiles) else {}
    return End(0, outcome.facts(), outcome.text(), files)


def _end(exit_code: int, name: str, text: str) -> End:
    return End(exit_code, {"error": name, "exit_code": exit_code, "message": text}, text)
