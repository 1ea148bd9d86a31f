"""What the package itself gives, whatever else was imported before."""

from __future__ import annotations

import importlib
import pkgutil
from types import FunctionType

import pytest

from shardmerge import phase1_dump


def test_dump_is_the_function_in_every_order_of_imports() -> None:
    """A module of that name would stand in its place as soon as anything imported it."""
    names = [
        module.name for module in pkgutil.walk_packages(phase1_dump.__path__, f"{phase1_dump.__name__}.")
    ]
    assert f"{phase1_dump.__name__}.dump" not in names
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
        assert type(phase1_dump.dump) is FunctionType
    from shardmerge.phase1_dump import dump
    from shardmerge.phase1_dump.dump_model import dump as defined

    assert dump is defined


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'merge'"):
        _ = phase1_dump.merge
