"""Where a loader writes each tensor that it is given: found out by poison, whatever it fuses tensors into.

All parameters are poisoned before each tensor, so that what this tensor writes is seen alone. Must not know names, of
files or of vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

POISONS = (0xEE, 0x11)  # of bytes, which may hold any value: one of two is not what was written
Weights = Iterable[tuple[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Write:
    """What one tensor of a file became in a parameter: flat places, and the values there, in their order."""

    places: torch.Tensor
    values: torch.Tensor


@dataclass(slots=True)
class Trace:
    """What a model's loader did.

    Attributes:
        files: Every tensor it was given, by its name in the file.
        writes: By that name: by parameter, what the tensor wrote. One that the loader passed over wrote nothing.
        sizes: How many elements each parameter of the model has.
    """

    files: dict[str, torch.Tensor] = field(default_factory=dict)
    writes: dict[str, dict[str, Write]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def taken(self) -> set[str]:
        """Return the names of all tensors that wrote anything."""
        return {name for name, writes in self.writes.items() if writes}

    def reached(self) -> dict[str, torch.Tensor]:
        """Return a mask of each parameter: what any tensor wrote.

        Raises AssertionError if two tensors wrote other values to one place.
        """
        masks = {parameter: torch.zeros(size, dtype=torch.bool) for parameter, size in self.sizes.items()}
        held: dict[str, torch.Tensor] = {}
        for name, writes in self.writes.items():
            for parameter, write in writes.items():
                empty = torch.zeros(self.sizes[parameter], dtype=write.values.dtype)
                known = held.setdefault(parameter, empty)
                again = masks[parameter][write.places]
                same = _bytes(known[write.places][again]) == _bytes(write.values[again])
                assert same.all(), f"{name} went to a place of {parameter} where another tensor was"
                known[write.places], masks[parameter][write.places] = write.values, True
        return masks


def trace(model: Any, load: Callable[[], None]) -> Trace:
    """Watch a model's own `load_weights`.

    Args:
        model: A vLLM model.
        load: Loads a checkpoint into it; called once for each poison.

    Returns:
        What was written where.
    """
    found, own = Trace(), model.load_weights
    held = {name: parameter.data for name, parameter in model.named_parameters()}
    found.sizes = {name: data.numel() for name, data in held.items()}
    for poison in POISONS:

        def watched(weights: Weights, poison: int = poison) -> Any:
            return own(_watched(weights, held, poison, found))

        model.load_weights = watched
        load()
    return found


def _watched(
    weights: Weights, held: dict[str, torch.Tensor], poison: int, found: Trace
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in weights:
        for data in held.values():
            data.fill_(poison if data.dtype == torch.uint8 else float("nan"))
        before = {parameter: _bytes(data).clone() for parameter, data in held.items()}
        found.files[name] = tensor.clone()
        yield name, tensor
        writes = found.writes.setdefault(name, {})
        for parameter, data in held.items():
            mask = (_bytes(data) != before[parameter]).any(1)
            if parameter in writes:  # under the other poison
                mask[writes[parameter].places] = True
            if mask.any():
                places = mask.nonzero().flatten()
                writes[parameter] = Write(places, data.reshape(-1)[places])


def _bytes(data: torch.Tensor) -> torch.Tensor:
    """Return the bytes of each element, a row for each."""
    return data.reshape(-1, 1).view(torch.uint8)
