"""One booted machine for all tests of a run."""

from collections.abc import Iterator

import pytest
from systemd.machine import Absent, Machine

SETTINGS = {
    '#capacity = "4 GiB"': 'capacity = "64 MiB"',
    '#paths = "/var/lib/kvtier/nvme"': 'paths = "/var/lib/kvtier/nvme"',
    '#capacity = "64 GiB"': 'capacity = "64 MiB"',
    "#calibrate_s = 2.0": "calibrate_s = 0.0",
}


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    try:
        machine = Machine(tmp_path_factory.mktemp("state"), SETTINGS)
    except Absent as reason:
        pytest.skip(str(reason))
    yield machine
    machine.close()
