"""Each kind of remote with its server, started once for a file of tests."""

from collections.abc import Iterator

import pytest
from remote.kinds import KINDS, Kind, opened
from remote.servers import Absent


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory) -> Iterator[Kind]:
    try:
        found = opened(request.param, tmp_path_factory.mktemp("r"))
        kind = found.__enter__()
    except Absent as reason:
        pytest.skip(str(reason))
    yield kind
    found.__exit__(None, None, None)


@pytest.fixture
def server(kind):
    """What can be killed and frozen; and is well again for the next test."""
    if kind.server is None:
        pytest.skip("no server is behind it")
    yield kind.server
    kind.server.thaw()
