"""A parameter as a source describes it: which box of which Megatron tensor a rank has, and where it lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shardmerge.common.architectures.keys import is_routed_expert
from shardmerge.common.rectangle import Shape


@dataclass(frozen=True, slots=True, eq=False)
class Parameter:
    """A box of a local tensor, and where it lies in the unsharded Megatron tensor `key`.

    `data` is the source's own handle of the local tensor, of shape `live_shape`; nobody else looks into it. The box
    starts at `start` in it and has `local_shape`.
    """

    key: str
    name: str  # as the source calls it, for messages
    data: Any
    live_shape: Shape
    start: Shape
    local_shape: Shape
    global_shape: Shape
    global_offset: Shape
    pp_replica: int

    @property
    def is_cut(self) -> bool:
        """Whether other ranks hold other parts of it."""
        return self.local_shape != self.global_shape

    @property
    def part(self) -> tuple[int, int]:
        """Which of the equal parts of the tensor this is, and how many there are."""
        part, parts = 0, 1
        for whole, local, offset in zip(self.global_shape, self.local_shape, self.global_offset, strict=True):
            along = -(-whole // local) if local else 1
            part, parts = part * along + (offset // local if local else 0), parts * along
        return part, parts

    @property
    def is_stage_copy(self) -> bool:
        """Whether another pipeline stage owns it, as the first does the tied embedding of the last."""
        return self.pp_replica != 0

    @property
    def is_routed_expert(self) -> bool:
        """Whether the key is that of a routed expert."""
        return is_routed_expert(self.key)

    @property
    def is_weight_of_norm(self) -> bool:
        """Whether it is what a norm multiplies by: no other weight of megatron-core has one dimension."""
        return len(self.global_shape) == 1 and self.key.endswith("weight")
