"""Which extra of shardmerge brings a library that is not installed, said in place of a traceback."""

from __future__ import annotations

from ..errors import BadInputError

EXTRAS = {
    "torch": "dump",
    "megatron": "dump",
    "transformer_engine": "te",
    "modelopt": "modelopt",
    "dask": "dask",
    "distributed": "dask",
}


def missing_library(command: str, error: ModuleNotFoundError) -> BadInputError:
    """Return the refusal of a command that needs a library. Raises `error` itself if no extra brings what it lacks."""
    library = (error.name or "").split(".")[0]
    if library not in EXTRAS:
        raise error
    return BadInputError(
        f"shardmerge {command} needs {library}, which is not installed",
        f"pip install 'shardmerge[{EXTRAS[library]}]'.",
    )
