import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kvtier fuzzing")
    group.addoption("--fuzz-seed", type=int, metavar="SEED", help="begin with this seed")


@pytest.fixture(scope="module")
def first_seed(request: pytest.FixtureRequest) -> int:
    """Default values too: when pytest starts above this folder, it reads these options too late to know them."""
    return request.config.getoption("--fuzz-seed", default=None) or 0
