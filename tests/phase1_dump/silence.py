"""A block in which any communication of torch.distributed raises, by three nets.

Names: every function of torch.distributed that is not listed here as local. Functional collectives: likewise. And
the dispatcher, which sees the operators behind all of them, also when a library kept a reference to a function.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType, ModuleType
from typing import Any
from unittest import mock

import torch
from torch import distributed
from torch.distributed import _functional_collectives as functional
from torch.distributed import distributed_c10d
from torch.utils._python_dispatch import TorchDispatchMode

# Functions of torch.distributed that answer from this process alone. All others count as communication, also those
# that a later torch adds.
LOCAL = {
    "get_backend",
    "get_backend_config",
    "get_default_backend_for_device",
    "get_global_rank",
    "get_group_rank",
    "get_node_local_rank",
    "get_pg_count",
    "get_process_group_ranks",
    "get_rank",
    "get_world_size",
    "is_backend_available",
    "is_gloo_available",
    "is_initialized",
    "is_mpi_available",
    "is_nccl_available",
    "is_torchelastic_launched",
    "is_ucc_available",
    "is_xccl_available",
    "supports_complex",
}
LOCAL_FUNCTIONAL = {"allow_inflight_collective_as_graph_input_ctx"}
OPERATORS = {"c10d", "_c10d_functional", "_c10d_functional_autograd", "c10d_functional", "symm_mem"}


class Communication(BaseException):
    """Something communicated. No Exception: nothing that recovers from errors may swallow it."""


class _NoOperators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in OPERATORS:
            raise Communication(f"operator {func}")
        return func(*args, **(kwargs or {}))


def communicating() -> list[tuple[ModuleType, str]]:
    """(module, name) of every function that communicates or may."""
    public = [name for name in _functions(distributed_c10d) if name in distributed_c10d.__all__]
    own = [name for name in _functions(functional) if not name.startswith("_")]
    found = [(distributed_c10d, name) for name in public if name not in LOCAL]
    found += [(distributed, name) for name in public if name not in LOCAL and hasattr(distributed, name)]
    return found + [(functional, name) for name in own if name not in LOCAL_FUNCTIONAL]


def _functions(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if type(value) is FunctionType]


@contextmanager
def silence() -> Iterator[None]:
    """Raise Communication where anything inside the block communicates."""
    with ExitStack() as stack:
        for module, name in communicating():
            stack.enter_context(mock.patch.object(module, name, _forbidden(f"{module.__name__}.{name}")))
        stack.enter_context(_NoOperators())
        yield


def _forbidden(name: str) -> Any:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise Communication(name)

    return refuse


def dump_in_silence(_rank: int, family: Any, topology: Any, out: Any, reference: Any) -> int:
    """Build a model, then dump it in silence; how many rectangles were written. For a pool of real ranks."""
    from tests.phase1_dump.dumped import dumped
    from tests.worlds.fake import build_model

    model = build_model(family, topology)
    torch.distributed.barrier()
    with silence():
        return len(dumped(model, out, reference).columns)
