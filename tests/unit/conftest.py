"""A file on a drive and a FileIo, for all tests of it."""

import os

import pytest
from kvtier._native import FileIo


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


@pytest.fixture
def file(path):
    """Direct I/O where the filesystem has it."""
    flags = os.O_RDWR | os.O_CREAT
    try:
        fd = os.open(path, flags | os.O_DIRECT)
    except OSError:
        fd = os.open(path, flags)
    yield fd
    os.close(fd)


@pytest.fixture(params=["io_uring", "threads"])
def io(request, arena, file):
    """Closed before arena and file are gone: what is in flight may still use both. `arena`: the test's own."""
    try:
        made = FileIo(6, 2, request.param)
    except OSError as refused:
        pytest.skip(f"no io_uring here: {refused}")
    yield made
    made.close()
