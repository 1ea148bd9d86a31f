"""The command `shardmerge`: a group whose subcommands are imported when they are called, never before.

So `shardmerge check` works where torch is not installed, and help answers at once. Commands are named as strings;
this module imports neither phase.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from ..errors import BadInputError
from .libraries import missing_library
from .outcome import HELP, INTERRUPTED, not_printed

# numpy's library of linear algebra starts a thread per core, and each spins for a while; nothing here needs it
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@dataclass(frozen=True, slots=True)
class Subcommand:
    """Where a command lives, and the line that help shows for it without importing it."""

    target: str
    summary: str


SUBCOMMANDS = {
    "dump": Subcommand(
        "shardmerge.phase1_dump.cli:dump",
        "Write what every rank holds of a model, or a checkpoint (phase one).",
    ),
    "export": Subcommand(
        "shardmerge.common.command.export:export",
        "Turn a checkpoint on disk into a Hugging Face one: both phases.",
    ),
    "check": Subcommand("shardmerge.phase2_merge.cli:check", "Prove that a dump is whole; write nothing."),
    "merge": Subcommand("shardmerge.phase2_merge.cli:merge", "Turn a dump into a Hugging Face checkpoint."),
    "metadata": Subcommand(
        "shardmerge.phase2_merge.cli:metadata", "Correct everything but the shards of an output."
    ),
    "verify": Subcommand("shardmerge.phase2_merge.cli:verify", "Check any Hugging Face directory."),
    "architectures": Subcommand(
        "shardmerge.common.command.architectures:architectures", "List the models that there are tables of."
    ),
    "inspect": Subcommand(
        "shardmerge.phase2_merge.cli:inspect", "Show what a dump or an output holds, also in progress."
    ),
    "diff": Subcommand(
        "shardmerge.phase2_merge.cli:diff", "Name the tensors that differ between two of dump and checkpoint."
    ),
}


class LazyGroup(click.Group):
    """A click group that finds its commands in SUBCOMMANDS."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command line. What click itself cannot print, such as help, is an error and no traceback.

        Args:
            args: See click.Group.
            extra: Likewise.

        Returns:
            Nothing, unless it is called with standalone_mode=False.
        """
        try:
            return super().main(*args, **extra)
        except OSError as error:
            sys.exit(not_printed(error))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. Ctrl-C while its libraries are imported ends it as it would later."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(INTERRUPTED)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        try:
            return load(SUBCOMMANDS[cmd_name])
        except ModuleNotFoundError as error:
            raise _MissingLibrary(missing_library(cmd_name, error).message()) from error

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands that begin so, without importing any, and the options of the group."""
        commands = [
            CompletionItem(name, help=sub.summary)
            for name, sub in SUBCOMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, sub.summary) for name, sub in SUBCOMMANDS.items()])


def load(subcommand: Subcommand) -> click.Command:
    """Import a subcommand. Raises ModuleNotFoundError if a library it needs is not installed."""
    module, name = subcommand.target.split(":")
    command = getattr(import_module(module), name)
    assert isinstance(command, click.Command)
    return command


class _MissingLibrary(click.ClickException):
    exit_code = BadInputError.exit_code


@click.group(cls=LazyGroup, context_settings=HELP)
@click.version_option(package_name="shardmerge")
def main() -> None:
    """Turn a Megatron-Core model on many ranks into one Hugging Face checkpoint.

    \b
    Every rank writes what it holds, then one CPU job merges:
      shardmerge check DUMP --hf-reference Qwen3-30B-A3B
      shardmerge merge DUMP OUT --hf-reference Qwen3-30B-A3B

    \b
    Completion of commands and options, for bash (or zsh, fish):
      eval "$(_SHARDMERGE_COMPLETE=bash_source shardmerge)"
    """
