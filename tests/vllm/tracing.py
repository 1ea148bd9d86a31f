"""Where a loader writes each tensor that it is given, whatever it fuses tensors into: seen at torch's own operations.

Every operation that writes to a parameter, or to a view of one, is seen by its schema. Must not know names, of files or
of vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

POISON = 0xEE  # of every byte before loading: what no tensor writes must still hold it
Weights = Iterable[tuple[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Box:
    """A view of a parameter: its shape, strides and first element, in elements of the parameter."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """Return the view of a flat tensor of as many elements as the parameter has."""
        return flat.as_strided(self.shape, self.strides, flat.storage_offset() + self.start)


@dataclass(slots=True)
class Trace:
    """What a model's loader did.

    Attributes:
        held: The data of each parameter of the model, flat.
        files: Every tensor it was given, by its name in the file.
        writes: By that name: by parameter, what the tensor wrote, in order. One that the loader passed over wrote
            nothing.
    """

    held: dict[str, torch.Tensor]
    files: dict[str, torch.Tensor] = field(default_factory=dict)
    writes: dict[str, dict[str, list[tuple[Box, torch.Tensor]]]] = field(default_factory=dict)

    def taken(self) -> set[str]:
        """Return the names of all tensors that wrote anything."""
        return {name for name, writes in self.writes.items() if writes}

    def written(self, name: str) -> dict[str, torch.Tensor]:
        """Return by parameter what a tensor wrote: the last values, flat, in the order of their places."""
        return {parameter: _in_order(writes) for parameter, writes in self.writes[name].items()}

    def reached(self) -> dict[str, torch.Tensor]:
        """Return a mask of each parameter: what any tensor wrote.

        Raises AssertionError if two tensors wrote other values to one place, or if something was written unseen.
        """
        known = {
            parameter: torch.full_like(data.view(torch.uint8), POISON).view(data.dtype)
            for parameter, data in self.held.items()
        }
        owners = {
            parameter: torch.zeros(len(data), dtype=torch.int32) for parameter, data in self.held.items()
        }
        for number, (name, parameters) in enumerate(self.writes.items(), 1):
            for parameter, writes in parameters.items():
                for box, values in writes:
                    owner, before = box.of(owners[parameter]), box.of(known[parameter])
                    others = ((owner != 0) & (owner != number)).reshape(-1)
                    same = _bytes(before)[others] == _bytes(values)[others]
                    assert same.all(), f"{name} went to a place of {parameter} where another tensor was"
                    owner.fill_(number)
                    before.copy_(values)
        for parameter, data in self.held.items():
            assert torch.equal(_bytes(known[parameter]), _bytes(data)), f"{parameter} was written unseen"
        return {parameter: owner != 0 for parameter, owner in owners.items()}


class _Watch(TorchDispatchMode):
    """Records every write to a parameter under the name of the tensor that it comes from.

    That is the one whose memory is read, as some loaders keep tensors and write them later; a value that was computed
    is of the tensor that is being loaded.
    """

    def __init__(self, found: Trace) -> None:
        super().__init__()
        self.found, self.name = found, ""
        self.names = {data.untyped_storage().data_ptr(): name for name, data in found.held.items()}
        self.given: dict[int, tuple[str, torch.Tensor]] = {}  # by address; kept, so that no other gets it

    def give(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the copy of a tensor that the loader gets."""
        self.name, copy = name, tensor.clone()
        self.given[copy.untyped_storage().data_ptr()] = name, copy
        self.found.files[name] = tensor
        self.found.writes.setdefault(name, {})
        return copy

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        sources = [value for value in (*args, *given.values()) if isinstance(value, torch.Tensor)]
        for number, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[number] if number < len(args) else given.get(argument.name)
            if isinstance(value, torch.Tensor) and value.numel():
                self._record(value, self._name_of(sources))
        return result

    def _name_of(self, sources: list[torch.Tensor]) -> str:
        known = [self.given.get(source.untyped_storage().data_ptr()) for source in sources]
        return next((found[0] for found in known if found), self.name)

    def _record(self, view: torch.Tensor, name: str) -> None:
        parameter = self.names.get(view.untyped_storage().data_ptr())
        if parameter is None:
            return
        data = self.found.held[parameter]
        assert view.element_size() == data.element_size(), f"{parameter} is written as {view.dtype}"
        start = int(view.storage_offset()) - int(data.storage_offset())
        box = Box(tuple(view.shape), view.stride(), start)
        writes = self.found.writes[name].setdefault(parameter, [])
        writes.append((box, view.detach().clone(memory_format=torch.contiguous_format)))


def trace(model: Any, load: Callable[[], None]) -> Trace:
    """Watch a model's own `load_weights`.

    Args:
        model: A vLLM model, whose parameters are overwritten.
        load: Loads a checkpoint into it; called once.

    Returns:
        What was written where.
    """
    own = model.load_weights
    parameters = {name: parameter.data for name, parameter in model.named_parameters()}
    found = Trace({name: data.view(-1) for name, data in parameters.items()})
    for data in found.held.values():
        data.view(torch.uint8).fill_(POISON)
    watch = _Watch(found)

    def watched(weights: Weights) -> Any:
        with watch:
            return own(_named(weights, watch))

    model.load_weights = watched
    load()
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == parameters[name].data_ptr(), f"{name} lies elsewhere after loading"
    return found


def _named(weights: Weights, watch: _Watch) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in weights:
        yield name, watch.give(name, tensor)


def _in_order(writes: list[tuple[Box, torch.Tensor]]) -> torch.Tensor:
    if len(writes) == 1 and writes[0][1].ndim and _ascends(writes[0][0]):
        return writes[0][1].reshape(-1)
    places: dict[int, torch.Tensor] = {}
    for box, values in writes:
        indices = _places(box)
        places.update(zip(indices, values.reshape(-1), strict=True))
    return torch.stack([places[place] for place in sorted(places)])


def _ascends(box: Box) -> bool:
    """Whether the view's elements, row by row, lie one behind the other, or with gaps."""
    reach = 0
    for size, stride in zip(reversed(box.shape), reversed(box.strides), strict=True):
        if size > 1 and stride <= reach:
            return False
        reach += (size - 1) * stride
    return True


def _places(box: Box) -> list[int]:
    found = [box.start]
    for size, stride in zip(box.shape, box.strides, strict=True):
        found = [place + step * stride for place in found for step in range(size)]
    return found


def _bytes(data: torch.Tensor) -> torch.Tensor:
    """Return the bytes of each element, a row for each."""
    return data.reshape(-1, 1).view(torch.uint8)
