"""Options that several commands take, of one phase or of both."""

from __future__ import annotations

import click

from ..architectures import Spelling
from .arguments import DIRECTORY

ARCHITECTURE = click.option(
    "--architecture",
    metavar="MODULE:TABLE",
    help="Table of a model of your own, as my_lab.tables:MY_MOE.  [default: that of the architecture in config.json]",
)
HF_REFERENCE = click.option(
    "--hf-reference",
    type=DIRECTORY,
    required=True,
    help="Hugging Face directory of the same model, or its id in the Hub's cache: config.json and tokenizer, weights "
    "optional.",
)
EXPERTS = click.option(
    "--experts",
    type=click.Choice([spelling.value for spelling in Spelling]),
    help="Write routed experts as one tensor for all of a layer, or one by one.  [default: as the reference does, "
    "without weights as published ones do]",
)
SET = click.option(
    "--set",
    "corrections",
    metavar="KEY=VALUE",
    multiple=True,
    help="Correct facts.KEY of the dump, config.KEY or quantization.KEY; KEY+=VALUE adds to a list. VALUE is JSON of "
    "the type that is there. What config.json says in two places changes in both. Recorded; may be given several "
    "times.",
)
SET_NEW = click.option(
    "--set-new",
    "new_corrections",
    metavar="KEY=VALUE",
    multiple=True,
    help="Add config.KEY, or replace it whatever its type; VALUE is JSON. Recorded; may be given several times.",
)
GRAFT = click.option(
    "--graft",
    "grafts",
    metavar="PATTERN",
    multiple=True,
    help="Take tensors of such names, as 'model.visual.*', from the reference's weights; 'mtp' is multi-token "
    "prediction, 'vision' all that stands beside a language model. Recorded. May be given several times.",
)
TOKENIZER = click.option(
    "--tokenizer",
    type=DIRECTORY,
    help="Directory with the tokenizer and its chat template.  [default: that of --hf-reference]",
)
