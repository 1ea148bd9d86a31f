"""Options that commands of both phases take."""

from __future__ import annotations

import click

ARCHITECTURE = click.option(
    "--architecture",
    metavar="MODULE:TABLE",
    help="Table of a model of your own, as my_lab.tables:MY_MOE.  [default: that of the architecture in config.json]",
)
