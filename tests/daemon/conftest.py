"""Daemons for tests: one for a test that kills it, one for a whole file of tests that only talk to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kvtierd import KVTierd


@pytest.fixture
def kvtierd(tmp_path: Path) -> Iterator[KVTierd]:
    """This test's own."""
    with KVTierd(tmp_path) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def shared_kvtierd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KVTierd]:
    """One for all tests of a file: each uses engines, models and keys of its own name."""
    with KVTierd(tmp_path_factory.mktemp("shared"), {"server.hello_timeout_ms": 1000}) as daemon:
        yield daemon
