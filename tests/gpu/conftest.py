"""Tests on a real GPU. Each is marked `gpu`, and skips with the reason where there is no NVIDIA driver or no such torch.

The ordering and the errors of the same code are tested everywhere, by the double of the driver in tests/fake_cuda.
"""

from pathlib import Path

import pytest
from gpu_caches import assert_ready

from kvtier import _native

MIB = 1 << 20
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def driver():
    opened = _native.CudaDriver.open()
    if opened.reason:
        pytest.skip(opened.reason)
    return opened


@pytest.fixture(scope="session")
def torch(driver):
    found = pytest.importorskip("torch", reason="no PyTorch")
    if not found.cuda.is_available():
        pytest.skip("this PyTorch can't use the GPU")
    return found


@pytest.fixture(scope="session")
def arena(driver):
    """128 MiB as kvtierd makes it, registered with the driver."""
    with _native.Arena.create(128 * MIB, "kvtier-test-gpu") as made:
        pin = _native.CudaPin(driver, 0, made.address, made.size)
        assert_ready(pin)
        assert (pin.pinned_bytes, pin.note) == (made.size, "")
        yield made
        pin.close()


# What a path takes of the driver; it will do with one of several.
NEEDS = {
    "batch": ({"cuMemcpyBatchAsync_v2"}, {"cuMemcpyBatchAsync"}),
    "kernel": ({"cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel"},),
}


@pytest.fixture
def make_copier(driver):
    """CudaCopier(**options) on the first GPU. Skips when the driver is too old for the path that is asked for; a path
    that can't be had for another reason is a failure."""
    made = []

    def make(**options):
        needs = NEEDS.get(options.get("path", "auto"), (set(),))
        if all(needed & set(driver.missing) for needed in needs):
            pytest.skip(f"the driver lacks {', '.join(driver.missing)}")
        made.append(_native.CudaCopier(driver, 0, **options))
        return made[-1]

    yield make
    for copier in made:
        copier.close()
