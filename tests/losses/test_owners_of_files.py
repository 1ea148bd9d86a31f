"""Whose files an output is made of: modes follow the umask, and what the kernel will not link is copied, as is said."""

from __future__ import annotations

import os
import shutil
import signal
import stat
from pathlib import Path

import pytest

from tests.dumps.dumps import load
from tests.dumps.worlds import World
from tests.losses.commands import KILL, Strike, end, line, merge, start
from tests.losses.test_metadata import SOMEBODY, as_somebody, needs_root

PROTECTED = Path("/proc/sys/fs/protected_hardlinks")


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], ids=oct)
def test_all_files_of_an_output_have_the_mode_that_the_umask_gives(one: World, umask: int) -> None:
    """Whatever the mode of the dump, which the safetensors library makes 0600."""
    for path in one.dump.rglob("*.safetensors"):
        path.chmod(0o600)
    code, said = end(start(line(*merge(one), before=f"os.umask({umask})")))
    assert code == 0, said
    modes = {stat.S_IMODE(path.stat().st_mode) for path in one.out.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}


@needs_root
@pytest.mark.skipif(
    shutil.which("setpriv") is None or not PROTECTED.is_file() or PROTECTED.read_text().strip() == "0",
    reason="everybody may link to the files of everybody",
)
def test_fragments_of_another_user_that_may_not_be_linked_are_copied_and_that_is_said_first(
    one: World,
) -> None:
    os.chown(one.folder, SOMEBODY, SOMEBODY)
    as_another = as_somebody(one.folder)
    copying = [Strike("open", ".model-00001-of-*", KILL)]
    code, said = end(start([*as_another, *line(*merge(one), strikes=copying)]))
    assert code == -signal.SIGKILL, said
    assert "links no files of other users" in said
    assert "copied" in said
    code, said = end(start([*as_another, *line(*merge(one))]))
    assert code == 0, said
    assert "1 by copy" in said
    assert load(one.out) == one.model.tensors
