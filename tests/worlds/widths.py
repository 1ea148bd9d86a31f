"""The widths of what only some of the small architectures have: experts, latent attention, mixers, steps.

Must not know families, checkpoints or shardmerge.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Experts:
    """Routed experts; `dense_layers` leading layers have none, `router_groups` 0 means ungrouped routing.

    Of the layers after these every `step`-th has some. `normalized` says whether the weights of a token's experts add
    up to 1.
    """

    num_experts: int = 8
    top_k: int = 2
    width: int = 40
    shared_width: int = 0
    shared_gate: bool = False  # multiplies the output of shared experts
    dense_layers: int = 0
    step: int = 1
    weighs_inputs: bool = False  # a token's weight multiplies what its expert reads
    router_bias: bool = False
    score: str = ""  # of the router; "": sigmoid with a bias, softmax without one
    normalized: bool = True
    router_groups: int = 0
    groups_kept: int = 0
    scaling: float = 1.0
    latent_width: int = 0  # of what routed experts read and write; 0: the hidden size

    def has_layer(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return layer >= self.dense_layers and (layer + 1) % self.step == 0


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-latent attention widths; `query_rank` 0 means no low-rank query."""

    query_rank: int = 24
    key_value_rank: int = 28
    nope_channels: int = 20
    rope_channels: int = 8
    value_channels: int = 12


@dataclass(frozen=True, slots=True)
class Indexer:
    """Widths of what chooses the tokens that sparse attention sees, and how it rotates."""

    heads: int = 6
    channels: int = 14
    top_k: int = 9
    interleaved: bool = False


@dataclass(frozen=True, slots=True)
class Gemma:
    """What only Gemma has: norms after both halves of a layer, and an embedding times the root of its width.

    Layers with a window rotate by `local_theta`; queries times keys are divided by the root of `scalar`.
    """

    local_theta: int = 10000
    scalar: int = 20


@dataclass(frozen=True, slots=True)
class Mamba:
    """Widths of Mamba-2, and a letter for each layer: M for Mamba, * attention, - dense, E experts."""

    pattern: str
    heads: int = 8
    head_channels: int = 7
    groups: int = 4
    state: int = 10

    def layers(self, letter: str) -> tuple[int, ...]:
        """Global ids of the layers of this kind."""
        return tuple(layer for layer, found in enumerate(self.pattern) if found == letter)


@dataclass(frozen=True, slots=True)
class Delta:
    """Widths of a Gated DeltaNet, and a letter for each layer: D for a DeltaNet, * attention with an output gate."""

    pattern: str
    key_heads: int = 4
    value_heads: int = 8
    key_channels: int = 11
    value_channels: int = 6
    kernel: int = 3


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps of multi-token prediction (MTP) after the decoder; of a hybrid, a letter for each layer of a step.

    `count` are stored. In training one stored step may predict several tokens, one after another: `passes`.
    """

    count: int = 1
    pattern: str = ""
    passes: int = 1
    dense: bool = False  # a step has no experts, though the decoder's last layer has

    @property
    def predicted(self) -> int:
        """How many tokens further training predicts: what megatron-core calls `mtp_num_layers`."""
        return self.count * self.passes
