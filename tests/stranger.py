"""Another user on this machine: who connects to a kvtierd while a test is in its shoes."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kvtierd import KVTierd

GROUP, STRANGER = 64127, 64128  # of nobody on this machine


@contextlib.contextmanager
def as_stranger() -> Iterator[None]:
    """Who connects meanwhile is the stranger, who is in the group."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(GROUP)
    os.seteuid(STRANGER)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@contextlib.contextmanager
def shared_by_two(settings: dict[str, object] | None = None) -> Iterator[KVTierd]:
    """A daemon that the stranger may use, too."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    folder = Path(tempfile.mkdtemp(prefix="kvtier-"))  # tmp_path lies below a folder that only its user may enter
    os.chown(folder, 0, GROUP)
    folder.chmod(0o750)
    try:
        with KVTierd(folder, {"server.group": GROUP, **(settings or {})}) as daemon:
            yield daemon
    finally:
        shutil.rmtree(folder)
