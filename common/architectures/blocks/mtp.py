"""Rows of multi-token prediction (MTP) beside its ordinary layers: what joins the embedding, and the final norm.

A step reads the hidden state and the embedding of the token after, each with a norm of its own; `eh_proj` [h, 2h] joins
them, its columns being those of the embedding, then those of the hidden state.
Source: megatron/core/transformer/multi_token_prediction.py; DeepSeek-V3 technical report, section 2.2.
"""

from __future__ import annotations

from ..dimensions import integer
from ..keys import HF_LAYER, STEP
from ..rows import Config, Row, Target, same

# the sets of first and last layers of steps, which a table with MTP defines
FIRST, LAST = "mtp_first", "mtp_last"
NUMBER = "num_nextn_predict_layers"


def steps_of(config: Config, key: str = NUMBER) -> int:
    """Return how many steps config.json says, under `key`, are stored. Raises ValueError for what is not a number."""
    steps = integer(config, key, 0)
    if steps < 0:
        raise ValueError(f"{key} = {steps}")
    return steps


def step_rows(hf_prefix: str, final_norm: str) -> tuple[Row, ...]:
    """Return the rows of a step.

    Args:
        hf_prefix: What the Hugging Face names of both norms and of the projection begin with.
        final_norm: Hugging Face name of the norm after the step.

    Returns:
        Four rows: three on the first layer of a step, the last on its last.
    """
    return (
        same(STEP + "enorm.weight", hf_prefix + "enorm.weight", "hidden", where=FIRST),
        same(STEP + "hnorm.weight", hf_prefix + "hnorm.weight", "hidden", where=FIRST),
        same(STEP + "eh_proj.weight", hf_prefix + "eh_proj.weight", "hidden", "two_hidden", where=FIRST),
        same(STEP + "final_layernorm.weight", final_norm, "hidden", where=LAST),
    )


def copied(name: str, source: str, when: str = "") -> Row:
    """Return the row of a tensor of a step that repeats an embedding of the model.

    Args:
        name: Hugging Face name in the step's layer.
        source: Hugging Face name of the tensor whose bytes it has.
        when: a flag of config.json that must be set for it to exist, "" for none.

    Returns:
        A row that no key belongs to.
    """
    return Row((), (Target(HF_LAYER + name, ("vocab", "hidden")),), where=FIRST, when=when, copy_of=source)
