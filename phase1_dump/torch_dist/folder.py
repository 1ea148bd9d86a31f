"""Finds the folder of a checkpoint's iteration, refuses other formats, and remembers every file's size and times.

Must not know what the files hold.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

import xxhash

from shardmerge.common import canonical_json, plausible_sizes, regular_files
from shardmerge.common.errors import (
    BadInputError,
    ChangedCheckpointError,
    CorruptFileError,
    UnfinishedCheckpointError,
    UnsupportedCheckpointError,
)
from shardmerge.common.errors.wording import counted
from shardmerge.common.places import METADATA
from shardmerge.common.reference import stays_inside

BACKEND = "metadata.json"
TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
ITERATION = re.compile(r"iter_(\d{7,})")
WEIGHTS = "weights"  # of NeMo, in the folder of an iteration
MODELOPT = "modelopt_state"
LEGACY = re.compile(r"mp_rank_\d")
TORCH_DIST = "torch_dist"
NESTED = re.compile(rb"\x8c.model\.", re.DOTALL)  # a short text that begins so
TRACKER_BYTES, BACKEND_BYTES = 64, 1 << 16
SHOWN = 6


@dataclass(frozen=True, slots=True)
class FileState:
    """What shows that a file is still the same.

    Attributes:
        num_bytes: Its size.
        written: When it was last written to, in nanoseconds.
        changed: When that, its name or its owner last changed. A copy that keeps times does not keep this one.
    """

    num_bytes: int
    written: int
    changed: int


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of one iteration.

    Attributes:
        path: The folder.
        iteration: Its number, None if no name tells.
        metadata: State of `.metadata` before it was read.
        digest: The xxh3_128 of `.metadata`, which holds an id that no other save has.
    """

    path: Path
    iteration: int | None
    metadata: FileState
    digest: str

    @property
    def has_modelopt_state(self) -> bool:
        """Whether Model-Optimizer saved what it did to the model."""
        return (self.path / MODELOPT).exists()

    def open_metadata(self) -> io.FileIO:
        """Return `.metadata`, opened for reading from its begin. Raises OSError, CorruptFileError."""
        return io.FileIO(regular_files.open_for_reading(self.path / METADATA, self.path), "rb")

    def states(self, names: Iterable[str]) -> dict[str, FileState]:
        """Return the states of files by their names.

        Raises UnfinishedCheckpointError if some are missing, CorruptFileError for what is not a file of the folder.
        """
        states: dict[str, FileState] = {}
        missing: list[str] = []
        for name in sorted(set(names)):
            if not stays_inside(name):
                raise CorruptFileError(str(self.path / METADATA), f"{name!r:.80} is not the name of a file")
            path = self.path / name
            if regular_files.exists(path, self.path):
                states[name] = state_of(path)
            else:
                missing.append(name)
        if missing:
            shown = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
            raise UnfinishedCheckpointError(
                str(self.path),
                f"{counted(len(missing), 'file')} that .metadata names cannot be found: {shown}",
            )
        return states

    def require_unchanged(self, states: Mapping[str, FileState]) -> None:
        """Raise ChangedCheckpointError unless `.metadata` and these files are what they were. Only it is read.

        Raises OSError if that cannot be seen: a file system that fails for a moment is not another checkpoint.
        """
        try:
            now = self.states(states)
            digest = digest_of(self.path)
        except (FileNotFoundError, NotADirectoryError, CorruptFileError, UnfinishedCheckpointError) as error:
            raise ChangedCheckpointError(str(self.path), str(error)) from None
        for name, state in states.items():
            if now[name] != state:
                raise ChangedCheckpointError(str(self.path), f"{name} was written to, or replaced")
        if digest != self.digest:
            raise ChangedCheckpointError(str(self.path), f"{METADATA} is another one")


def find(path: Path) -> Folder:
    """Return the folder of the iteration that `path` is, or holds.

    Args:
        path: The folder of an iteration; or one of several, with `latest_checkpointed_iteration.txt` beside them.

    Returns:
        The folder.

    Raises:
        BadInputError: there is no checkpoint, or several and nothing says which.
        UnsupportedCheckpointError: it is of another format.
        UnfinishedCheckpointError: it is being saved.
        CorruptFileError: a file of it is not what it should be.
    """
    if not path.is_dir():
        raise BadInputError(f"{path} is not a directory", "Give --checkpoint the directory of a checkpoint.")
    found = _with_metadata(path) or _with_metadata(_iteration(path))
    if found is None:
        raise BadInputError(
            f"{path} holds no torch_dist checkpoint ({METADATA} is missing)",
            "Give --checkpoint the directory of an iteration, such as iter_0001000.",
        )
    _require_torch_dist(found)
    metadata = state_of(found / METADATA)
    if metadata.num_bytes > plausible_sizes.CHECKPOINT_METADATA.ceiling_bytes:
        reason = f"it has {metadata.num_bytes:,} bytes, which is not plausible"
        raise CorruptFileError(str(found / METADATA), reason)
    return Folder(found, iteration_in(found), metadata, digest_of(found))


def state_of(path: Path) -> FileState:
    """Return the state of a file, or of what a link leads to. Raises OSError."""
    found = os.stat(path)
    return FileState(found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def digest_of(folder: Path) -> str:
    """Return the xxh3_128 of `.metadata`. Raises OSError, CorruptFileError."""
    checksum = xxhash.xxh3_128()
    with open(regular_files.open_for_reading(folder / METADATA, folder), "rb", buffering=0) as file:
        while data := file.read(1 << 20):
            checksum.update(data)
    return checksum.hexdigest()


def _with_metadata(path: Path) -> Path | None:
    """Return the folder with `.metadata`: this one, or its weights. Refuses formats that have none."""
    for folder in (path, path / WEIGHTS):
        if regular_files.exists(folder / METADATA, path):
            return folder
    if any(LEGACY.match(entry.name) for entry in path.iterdir()):
        raise UnsupportedCheckpointError(str(path), "it has Megatron's legacy format (mp_rank_*)")
    if regular_files.exists(path / BACKEND, path):
        _require_torch_dist(path)
        raise UnfinishedCheckpointError(str(path), f"{METADATA} is missing")
    return None


def _iteration(path: Path) -> Path:
    """Return the folder of the iteration that a folder of several says is the latest."""
    if regular_files.exists(path / TRACKER, path):
        said = regular_files.read(path / TRACKER, path, TRACKER_BYTES).decode("ascii", "replace").strip()
        name = said if said == RELEASE else f"iter_{said.zfill(7)}"
        if said != RELEASE and not (said.isascii() and said.isdecimal()):
            raise CorruptFileError(str(path / TRACKER), f"{said!r:.40} is not an iteration")
        if not (path / name).is_dir():
            raise BadInputError(
                f"{path / TRACKER} says {said}, and {name} is not there",
                "Give --checkpoint the directory of an iteration.",
            )
        return path / name
    names = sorted(
        entry.name for entry in path.iterdir() if ITERATION.fullmatch(entry.name) or entry.name == RELEASE
    )
    if names:
        raise BadInputError(
            f"{path} holds {len(names)} iterations, and no {TRACKER} says which is meant",
            f"Give --checkpoint one of them, such as {path / names[-1]}.",
        )
    return path


def _require_torch_dist(folder: Path) -> None:
    """Raise UnsupportedCheckpointError unless megatron-core saved torch_dist here, finished."""
    if not regular_files.exists(folder / BACKEND, folder):
        if _is_of_torch_alone(folder):
            raise UnsupportedCheckpointError(
                str(folder), "it has the format fsdp_dtensor or torch_dcp, not torch_dist"
            )
        raise UnfinishedCheckpointError(str(folder), f"{BACKEND} is missing, which megatron-core writes last")
    try:
        said = canonical_json.decode(regular_files.read(folder / BACKEND, folder, BACKEND_BYTES))
    except ValueError as error:
        raise CorruptFileError(str(folder / BACKEND), str(error)) from None
    backend = said.get("sharded_backend") if isinstance(said, dict) else None
    if backend != TORCH_DIST:
        raise UnsupportedCheckpointError(str(folder), f"its format is {backend!r:.40}, not {TORCH_DIST}")


def _is_of_torch_alone(folder: Path) -> bool:
    """Whether the keys in `.metadata` begin as in a state dict of dicts, which megatron-core flattens otherwise."""
    if not regular_files.exists(folder / METADATA, folder):
        return False
    with io.FileIO(regular_files.open_for_reading(folder / METADATA, folder), "rb") as file:
        return NESTED.search(file.read(1 << 20)) is not None


def iteration_in(path: str | Path) -> int | None:
    """Return the iteration that the name of a folder, or of the one above its weights, tells. It need not be there."""
    folder = PurePath(path)
    for name in (folder.name, folder.parent.name):
        if match := ITERATION.fullmatch(name):
            return int(match[1])
    return None
