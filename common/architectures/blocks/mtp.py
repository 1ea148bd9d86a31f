"""Rows of multi-token prediction (MTP) beside its ordinary layers: what joins the embedding, and the final norm.

A step reads the hidden state and the embedding of the token after, each with a norm of its own; `eh_proj` [h, 2h] joins
them, its columns being those of the embedding, then those of the hidden state.
Source: megatron/core/transformer/multi_token_prediction.py; DeepSeek-V3 technical report, section 2.2.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from ..dimensions import integer
from ..keys import HF_LAYER, STEP
from ..rows import Config, Layers, Row, Target, same
from ..settings.says import Says, derived

# the sets of first and last layers of steps, which a table with MTP defines
FIRST, LAST = "mtp_first", "mtp_last"
NUMBER = "num_nextn_predict_layers"
ALIAS = "num_mtp_layers"  # as transformers 5 calls it for some
ONE_STEP_PROJECTION = "mtp.fc.weight"


def steps_of(config: Config, key: str = NUMBER) -> int:
    """Return how many steps config.json says, under `key`, are stored. Raises ValueError for what is not a number."""
    steps = integer(config, key, 0)
    if steps < 0:
        raise ValueError(f"{key} = {steps}")
    return steps


@dataclass(frozen=True, slots=True)
class OneStep:
    """How config.json of Qwen speaks of a step, of which there is at most one: as a number under `key`, or not at all.

    Published files of Qwen3-Next say nothing and hold one.
    """

    key: str

    def steps(self, config: Config) -> tuple[int, int]:
        """Return how many are stored, each of one layer. Raises ValueError for more than the names have place for."""
        number = steps_of(config, self.key)
        if number > 1:
            raise ValueError(f"{self.key} = {number}")
        return number, 1

    def spoken(self, config: Config, held: Container[str]) -> Config:
        """Return a config.json that says it if the tensors beside it do."""
        is_shown = self.key not in config and ONE_STEP_PROJECTION in held
        return {**config, self.key: 1} if is_shown else config

    def without(self, config: Config) -> dict[str, Any]:
        """Say 0: what an absent key stands for depends on the reader."""
        return {**config, self.key: 0}

    def setting(self) -> Says:
        """Return the row of the setting."""
        return derived("mtp_steps", (self.key,), lambda config: self.steps(config)[0])


def promised_steps(config: Config) -> int:
    """Return how many steps there are. A config.json that says nothing promises one, as transformers 5 reads it.

    Source: transformers `DeepseekV3Config` and `Glm4MoeConfig`, where ALIAS is another name of NUMBER.
    """
    key = next((key for key in (NUMBER, ALIAS) if key in config), None)
    return steps_of(config, key) if key else 1


def without_steps(config: Config) -> dict[str, Any]:
    """Say 0: an absent key is 1 to transformers 5, and SGLang refuses null."""
    return promising_none({key: value for key, value in config.items() if key != ALIAS})


def promising_none(config: Config) -> dict[str, Any]:
    """Say 0, in the one key that all readers of some architectures look at."""
    return {**config, NUMBER: 0}


def decoder_and_steps(config: Config, dense: Container[int], steps: int) -> Layers:
    """Return the sets of layers of a decoder of which some are `dense`, and of steps, which have experts.

    Args:
        config: What config.json holds.
        dense: Numbers of the layers without experts; those of steps do not count.
        steps: How many steps there are, each of one layer.

    Returns:
        The sets.
    """
    decoder = config["num_hidden_layers"]
    every = range(decoder + steps)
    plain = frozenset(layer for layer in range(decoder) if layer in dense)
    return {
        "layers": every,
        "dense": plain,
        "moe": frozenset(every) - plain,
        FIRST: every[decoder:],
        LAST: every[decoder:],
    }


def step_rows(hf_prefix: str, final_norm: str) -> tuple[Row, ...]:
    """Return the rows of a step.

    Args:
        hf_prefix: What the Hugging Face names of both norms and of the projection begin with.
        final_norm: Hugging Face name of the norm after the step.

    Returns:
        Four rows: three on the first layer of a step, the last on its last.
    """
    return _step(
        hf_prefix + "enorm.weight", hf_prefix + "hnorm.weight", hf_prefix + "eh_proj.weight", final_norm
    )


def one_step() -> tuple[Row, ...]:
    """Return the rows of a step as Qwen and EXAONE call them, whose names have place for one."""
    return _step(
        "mtp.pre_fc_norm_embedding.weight",
        "mtp.pre_fc_norm_hidden.weight",
        ONE_STEP_PROJECTION,
        "mtp.norm.weight",
    )


def _step(embedding_norm: str, hidden_norm: str, joined: str, final_norm: str) -> tuple[Row, ...]:
    return (
        same(STEP + "enorm.weight", embedding_norm, "hidden", where=FIRST),
        same(STEP + "hnorm.weight", hidden_norm, "hidden", where=FIRST),
        same(STEP + "eh_proj.weight", joined, "hidden", "two_hidden", where=FIRST),
        same(STEP + "final_layernorm.weight", final_norm, "hidden", where=LAST),
    )


def copied(name: str, source: str, when: str = "", *, if_held: bool = False) -> Row:
    """Return the row of a tensor of a step that repeats an embedding of the model.

    Args:
        name: Hugging Face name in the step's layer.
        source: Hugging Face name of the tensor whose bytes it has.
        when: a flag of config.json that must be set for it to exist, "" for none.
        if_held: it exists only where the reference holds it.

    Returns:
        A row that no key belongs to.
    """
    target = Target(HF_LAYER + name, ("vocab", "hidden"))
    return Row((), (target,), where=FIRST, when=when, copy_of=source, if_held=if_held)


def copies(*, if_held: bool = False) -> tuple[Row, ...]:
    """Return the rows of what a step reads and predicts with: the model's own, which published files hold once more."""
    return (
        copied("embed_tokens.weight", "model.embed_tokens.weight", if_held=if_held),
        copied("shared_head.head.weight", "lm_head.weight", when="untied", if_held=if_held),
    )
