import pytest

SEEDS = 24  # ten times as many in make test-long


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kvtier simulator")
    group.addoption("--sim-seed", type=int, metavar="SEED", help="run only this seed")
    group.addoption("--sim-seeds", type=int, metavar="N", help=f"run so many seeds; {SEEDS} unless told")


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> range:
    """Default values too: when pytest starts above this folder, it reads these options too late to know them."""
    only = request.config.getoption("--sim-seed", default=None)
    if only is not None:
        return range(only, only + 1)
    return range(request.config.getoption("--sim-seeds", default=None) or SEEDS)
