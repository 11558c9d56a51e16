"""The fake driver, compiled, and the stress program in its variants; and a driver that a test has for itself."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from fake_cuda import build
from fake_cuda.cuda_calls import Cuda


@pytest.fixture(scope="session")
def library() -> Path:
    if build.compiler() is None:
        pytest.skip("no C++ compiler")
    return build.library()


@pytest.fixture
def cuda(library: Path) -> Iterator[Cuda]:
    """The context of device 0 is current on the test's thread."""
    driver = Cuda(library)
    driver.reset()
    driver.enter()
    yield driver
    driver.reset()


@pytest.fixture(scope="session")
def stress_program(library: Path) -> Iterator[Callable[[str], Path]]:
    """The stress program for a sanitizer. All are compiled at the same time, from when the first is asked for."""
    with ThreadPoolExecutor() as pool:
        built: dict[str, Future[Path]] = {
            sanitize: pool.submit(build.stress, sanitize=sanitize)
            for sanitize in (build.PLAIN, build.ADDRESS, build.THREAD)
            if not sanitize or build.has_sanitizer(sanitize)
        }

        def program(sanitize: str = build.PLAIN) -> Path:
            if sanitize not in built:
                pytest.skip(f"the compiler has no -fsanitize={sanitize} that works here")
            return built[sanitize].result()

        yield program
