"""The seam of phase one: `Source`, the protocol of everything that must be known to write a rank.

A source answers for one rank. The model in memory is one (`sources/live_model.py`); a checkpoint on disk or a process
that was handed the blocks of another could be. `fragments/` writes what any source says and knows nothing behind it;
`rectangles/` is the geometry that sources share. Neither imports torch, nor does this module.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from shardmerge.common.manifest_facts import QuantizationFacts
from shardmerge.common.rectangle import Rectangle

from .generation import Generation
from .world import World


@dataclass(frozen=True, slots=True, eq=False)
class Holding:
    """A rectangle that this rank holds, and the global ranks, ascending, that hold the same; one of them writes it.

    `recipe` says how the bytes are made. Only the source that put it there looks into it.
    """

    rectangle: Rectangle
    replicas: tuple[int, ...]
    recipe: Any = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of the numbers of one rectangle while they passed. The default says that nothing is unusual.

    nonfinite: how many elements are (NaN, infinite); None if all are finite.
    all_zero: there are elements, and each of them is zero.
    narrowed: elements that lost bits because the dtype they are written in is narrower than their own.
    invalid_scales: elements of a scale that are zero, negative or not finite.
    added: what was added to each element, 1 or -1, as readers take the weights of norms otherwise than the model.
    """

    nonfinite: tuple[int, int] | None = None
    all_zero: bool = False
    narrowed: int = 0
    invalid_scales: int = 0
    added: int = 0


@dataclass(frozen=True, slots=True)
class ManifestFacts:
    """Everything that the manifest says of a rank besides its place, its generation and its rectangles.

    architecture: the name in config.json, and `dimensions` what its table reads there.
    params_dtype: safetensors name of the dtype that the parameters are trained in.
    settings: what the model says of `architectures.settings`, as far as this rank can tell; None if the source knows
        nothing of them. Norms are said to be as they are written, which may not be as the model stores them.
    own_options: fields of the model's config that are not megatron-core's.
    experts: how routed experts are spelled, by part, as far as this rank holds any.
    table: digest of the table, None if the source has none.
    dtype_from_reference: the reference was allowed to narrow tensors that are otherwise kept float32.
    drops: what is left out on purpose, counted by reason.
    router_bias_dtypes: how many router biases were held in each dtype: training may have rounded them.
    producer: versions by the name of the program.
    quantization: what `rectangles/quantization_facts.py` says; None if nothing here is quantized.
    statistics: what the source measured of itself, by names of the manifest's statistics.
    """

    architecture: str
    dimensions: dict[str, int]
    params_dtype: str
    settings: dict[str, Any] | None = None
    own_options: tuple[str, ...] = ()
    experts: dict[str, str] = field(default_factory=dict)
    table: str | None = None
    dtype_from_reference: bool = False
    drops: dict[str, int] = field(default_factory=dict)
    router_bias_dtypes: dict[str, int] = field(default_factory=dict)
    producer: dict[str, str] = field(default_factory=dict)
    quantization: QuantizationFacts | None = None
    statistics: dict[str, float] = field(default_factory=dict)


Stream: TypeAlias = Generator[memoryview | Seen, None, None]


class Source(Protocol):
    """Everything that phase one must know about one rank.

    `world`, `generation`, `facts`: who this rank is, which dump it belongs to, and the rest of its manifest.
    `holdings`: the rectangles that this rank holds and may write, in the order of the model.
    `stage_copies`: rectangles that it holds too but another pipeline stage owns, as the first stage owns the tied
    embedding of the last. They are never written; their checksums are recorded if replicas are to be compared.
    """

    @property
    def world(self) -> World: ...
    @property
    def generation(self) -> Generation: ...
    @property
    def facts(self) -> ManifestFacts: ...
    @property
    def holdings(self) -> Sequence[Holding]: ...
    @property
    def stage_copies(self) -> Sequence[Holding]: ...

    def settle(self) -> None:
        """Wait until nobody writes to the numbers any more: on a GPU, until every kernel that may is through.

        Called once, before anything is read.
        """

    def read(self, holdings: Sequence[Holding], *, inspect: bool = True, streams: int = 1) -> Stream:
        """Yield the bytes of these holdings one after another: for each its blocks in order, then one `Seen`.

        The blocks of a holding are together the `rectangle.num_bytes` bytes of its elements in row order, cast to
        `rectangle.dtype`. How large a block is, the source decides; a rectangle without elements may have none.

        A block is a flat memoryview of bytes: a view of the source's own memory, or of one of its buffers. **It stays
        valid until the block after the next is asked for; where several streams are read, only until the next is.** A
        caller that hands blocks to another thread therefore waits until block n - 1 is written before it asks for
        block n + 1; the source waits for nobody.

        Args:
            holdings: some of `holdings` and `stage_copies`. The source may prepare what comes later in the list.
            inspect: False if nobody needs to know about the numbers: each `Seen` is then the default one.
            streams: how many streams are read at the same time, each in a thread of its own. They share the source's
                memory evenly.

        Returns:
            A generator. Closing it, also before its end, releases threads and whatever else it has taken.
        """
