"""Folders as values: looked at, compared, put back.

Must not know what the files mean.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Node:
    """A file, a folder (`data` is None) or a link: what is compared is `content`."""

    mode: int
    data: bytes | None
    inode: int
    mtime_ns: int

    @property
    def content(self) -> tuple[int, bytes | None]:
        return self.mode, self.data

    @property
    def identity(self) -> tuple[int, int]:
        return self.inode, self.mtime_ns


Tree: TypeAlias = Mapping[str, Node]  # by path below the root


def look(root: Path) -> Tree:
    """Everything below `root`, by path."""
    found: dict[str, Node] = {}
    _look(str(root), "", found)
    return found


def _look(folder: str, prefix: str, found: dict[str, Node]) -> None:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name, status = prefix + entry.name, entry.stat(follow_symlinks=False)
        data = None
        if stat.S_ISREG(status.st_mode):
            data = Path(entry.path).read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            data = os.fsencode(os.readlink(entry.path))
        found[name] = Node(status.st_mode, data, status.st_ino, status.st_mtime_ns)
        if data is None and stat.S_ISDIR(status.st_mode):
            _look(entry.path, name + "/", found)


def below(tree: Tree, folder: str) -> dict[str, Node] | None:
    """The part of a tree below a folder, by path below that; None if the folder is not there."""
    if folder not in tree:
        return None
    begin = f"{folder}/"
    return {path.removeprefix(begin): node for path, node in tree.items() if path.startswith(begin)}


def contents(
    tree: Tree, ignored: Callable[[str], bool] = lambda path: False
) -> dict[str, tuple[int, bytes | None]]:
    """What is compared of a tree: modes and bytes by path."""
    return {path: node.content for path, node in tree.items() if not ignored(path)}


def differences(found: Mapping[str, object], wanted: Mapping[str, object]) -> list[str]:
    """What distinguishes two trees' contents, in words."""
    lines = [f"{path} is missing" for path in sorted(wanted.keys() - found.keys())]
    lines += [f"{path} is there" for path in sorted(found.keys() - wanted.keys())]
    common = sorted(found.keys() & wanted.keys())
    return lines + [f"{path} differs" for path in common if found[path] != wanted[path]]


def put_back(root: Path, wanted: Tree) -> None:
    """Make what lies below `root` what it was when `wanted` was looked at; hard links too.

    Files that are as they were are not touched.
    """
    found = look(root)
    for path in sorted(found, reverse=True):
        if path not in wanted or stat.S_IFMT(found[path].mode) != stat.S_IFMT(wanted[path].mode):
            _remove(root / path, found[path])
    stands: dict[int, Path] = {}  # for each inode of `wanted`, a path that has its file again
    taken: set[int] = set()  # inodes on disk of these
    for path, node in wanted.items():
        place, twin = root / path, stands.get(node.inode)
        if not _stands(place, found.get(path), node, twin, taken):
            _make(place, node, twin)
        stands.setdefault(node.inode, place)
        taken.add(os.lstat(place).st_ino)
    for path, node in reversed(list(wanted.items())):
        os.utime(root / path, ns=(node.mtime_ns, node.mtime_ns), follow_symlinks=False)


def _stands(place: Path, have: Node | None, wanted: Node, twin: Path | None, taken: set[int]) -> bool:
    """Whether a file, of which `twin` is another name, is as it was; it is removed if it is there and is not."""
    if have is None or not os.path.lexists(place):
        return False
    linked = os.lstat(twin).st_ino == have.inode if twin else have.inode not in taken
    if have.content == wanted.content and (
        wanted.data is None or (linked and have.mtime_ns == wanted.mtime_ns)
    ):
        return True
    if wanted.data is None:
        place.chmod(stat.S_IMODE(wanted.mode))
        return True
    place.unlink()
    return False


def _remove(path: Path, node: Node) -> None:
    if stat.S_ISDIR(node.mode):
        shutil.rmtree(path)
    else:
        path.unlink()


def _make(path: Path, node: Node, twin: Path | None) -> None:
    if twin is not None and node.data is not None:
        os.link(twin, path, follow_symlinks=False)
    elif stat.S_ISLNK(node.mode):
        path.symlink_to(os.fsdecode(node.data or b""))
    elif node.data is None:
        path.mkdir()
        path.chmod(stat.S_IMODE(node.mode))
    else:
        path.write_bytes(node.data)
        path.chmod(stat.S_IMODE(node.mode))
