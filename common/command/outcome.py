"""Decides how every command ends: what --json and --report get, and which exit code. Knows no command.

Data goes to stdout, talk to stderr. A refusal of the tree exits with its own code; anything unexpected is a defect
and exits 1 with its traceback.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import click

from .. import canonical_json, durable
from ..errors import ShardmergeError

INTERRUPTED = 130
FAILED = 1
HELP = {"help_option_names": ["-h", "--help"]}  # context settings of every command, however it is reached
DEFECT = "This is a defect of shardmerge. Please report it with the lines above."


class Outcome(Protocol):
    """What a command found out, as `facts` for machines and as `text` for people."""

    def facts(self) -> dict[str, Any]: ...

    def text(self) -> str: ...


@dataclass(frozen=True, slots=True)
class End:
    """An outcome or a refusal, ready to be printed and reported."""

    exit_code: int
    facts: dict[str, Any]
    text: str


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
        if (
            report is not None and not report.absolute().parent.is_dir()
        ):  # said before hours of work, not after
            raise click.BadParameter(f"{report.parent} is not a directory.", param_hint="--report")
        end = _run(lambda: run(**options))
        if report is not None:
            durable.write_file(report_path(report), canonical_json.encode(end.facts, indent=2))
        if as_json:
            click.echo(canonical_json.encode(end.facts), nl=False)
        if end.text and (end.exit_code or not as_json):
            click.echo(end.text, err=bool(end.exit_code))
        click.get_current_context().exit(end.exit_code)

    return command


def _run(run: Callable[[], Outcome]) -> End:
    try:
        outcome = run()
    except ShardmergeError as error:
        return End(error.exit_code, error.facts(), f"Error: {error.message()}")
    except KeyboardInterrupt:
        return _end(INTERRUPTED, "Interrupted", "Interrupted.")
    except OSError as error:
        return _end(FAILED, type(error).__name__, f"Error: {error}")
    except Exception as error:  # the one place that catches everything: it reports, and fails
        return _end(FAILED, type(error).__name__, f"{traceback.format_exc()}{DEFECT}")
    return End(0, outcome.facts(), outcome.text())


def _end(exit_code: int, name: str, text: str) -> End:
    return End(exit_code, {"error": name, "exit_code": exit_code, "message": text}, text)
