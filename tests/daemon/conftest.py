"""Daemons for tests: one for a test that kills it, one for a whole file of tests that only talk to it;
and a server for their remote."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kvtierd import KVTierd
from remote.servers import Absent, Redis, redis_or_valkey


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


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Redis]:
    """Of a remote; not started yet."""
    try:
        server = Redis(tmp_path / "server", redis_or_valkey())
    except Absent as reason:
        pytest.skip(str(reason))
    yield server
    server.kill()


@pytest.fixture
def remote(server: Redis) -> Redis:
    server.start()
    return server
