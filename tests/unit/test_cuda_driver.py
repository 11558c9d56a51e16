"""The driver as it is found: one that is absent, or that isn't one, is a reason and never an exception."""

import ctypes.util
import os
import subprocess
import sys

import pytest

from kvtier import _native


def libm() -> str:
    """A shared object without a single entry point of CUDA's."""
    return ctypes.util.find_library("m") or "libm.so.6"


def test_a_machine_without_a_driver_gets_a_reason_that_names_what_was_looked_for():
    driver = _native.CudaDriver.open()
    if driver.reason == "":
        pytest.skip("this machine has an NVIDIA driver")
    assert "libcuda.so.1" in driver.reason or "cuInit" in driver.reason
    assert driver.devices == []


def test_a_path_where_nothing_is_gets_a_reason_that_names_it():
    driver = _native.CudaDriver.open("/no/such.so")
    assert driver.reason.startswith("no NVIDIA driver: /no/such.so: ")
    assert (driver.version, driver.devices, driver.missing) == (0, [], [])


def test_a_reason_is_one_line():
    for path in ("", "/no/such.so", "/", libm()):
        assert "\n" not in _native.CudaDriver.open(path).reason


def test_a_library_that_is_no_driver_is_told_by_the_first_entry_point_that_it_lacks():
    driver = _native.CudaDriver.open(libm())
    assert driver.reason == "the driver lacks cuInit"
    assert driver.missing[:2] == ["cuInit", "cuDriverGetVersion"]
    assert {"cuMemHostRegister_v2", "cuMemcpyBatchAsync_v2", "cuMemcpyBatchAsync"} < set(driver.missing)
    assert (driver.version, driver.devices) == (0, [])


@pytest.mark.parametrize("path", ["/no/such.so", libm()])
def test_who_needs_a_driver_that_cannot_be_used_gets_a_valueerror_with_its_reason(path):
    driver = _native.CudaDriver.open(path)
    for needy in (
        lambda: _native.CudaCopier(driver, 0),
        lambda: _native.CudaPin(driver, 0, 2 << 20, 2 << 20),
        lambda: _native.DeviceArena.create(driver, 0, 2 << 20),
        lambda: _native.DeviceArena.attach(driver, 0, bytes(64), 2 << 20),
    ):
        with pytest.raises(ValueError) as failure:
            needy()
        assert str(failure.value) == driver.reason


def test_a_copier_wants_a_driver_and_pages_that_are_not_empty():
    with pytest.raises(TypeError):
        _native.CudaCopier(None, 0)
    with pytest.raises(ValueError, match="page_bytes"):
        _native.CudaCopier(_native.CudaDriver.open("/no/such.so"), 0, page_bytes=0)


def test_importing_kvtier_and_opening_nothing_loads_no_driver():
    program = (
        "from kvtier import _native\n"
        "copier = _native.Copier()\n"
        "copier.close()\n"
        "with open('/proc/self/maps') as maps:\n"
        "    assert 'libcuda' not in maps.read()\n"
    )
    folder = os.path.dirname(os.path.dirname(_native.__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *sys.path])}
    assert subprocess.run([sys.executable, "-c", program], env=environment, timeout=60).returncode == 0
