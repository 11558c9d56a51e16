"""A driver that lacks entry points: what needs them is left out, with a note, and the rest works."""

import ctypes

import numpy
import pytest
from fake_driver import fake_driver

from kvtier import _native

PAGE = 4096
BATCH, OLD_BATCH, LAUNCH = "cuMemcpyBatchAsync_v2", "cuMemcpyBatchAsync", "cuLaunchKernel"


def copier_of(fake, path="auto"):
    return _native.CudaCopier(fake.open(), 0, path=path, page_bytes=PAGE)


def assert_copies(copier):
    """From memory that is not registered to other such memory, which every path but the kernel can."""
    source, target = ctypes.create_string_buffer(b"\5" * PAGE, PAGE), ctypes.create_string_buffer(PAGE)
    columns = [numpy.array([word], numpy.uint64) for word in (ctypes.addressof(source), ctypes.addressof(target), PAGE)]
    ticket = copier.submit(*columns)
    assert copier.wait(ticket, timeout_s=30)
    [(reported, copied, _, error)] = copier.poll()
    assert (reported, copied, error, target.raw) == (ticket, PAGE, "", source.raw)


@pytest.mark.parametrize("path", ["batch", "async", "kernel"])
def test_a_driver_with_everything_has_every_path(path):
    with fake_driver() as fake:
        copier = copier_of(fake, path)
        assert (copier.path, fake.open().missing) == (path, [])
        copier.close()


def test_the_batch_of_cuda_12_serves_where_that_of_13_is_missing():
    with fake_driver(BATCH) as fake:
        copier = copier_of(fake, "batch")
        assert (copier.path, fake.open().missing) == ("batch", [BATCH])
        assert_copies(copier)
        assert fake.calls(OLD_BATCH) > 0
        copier.close()


def test_without_any_batch_the_copies_go_one_by_one():
    with fake_driver(BATCH, OLD_BATCH, LAUNCH) as fake:
        copier = copier_of(fake)
        assert copier.path == "async"
        for symbol in (BATCH, LAUNCH):
            assert any(symbol in note for note in copier.notes), copier.notes
        assert_copies(copier)
        copier.close()


@pytest.mark.parametrize(("path", "missing"), [("batch", [BATCH, OLD_BATCH]), ("kernel", [LAUNCH])])
def test_a_path_that_was_asked_for_and_cannot_be_had_is_refused_with_the_reason(path, missing):
    with fake_driver(*missing) as fake:
        with pytest.raises(ValueError, match=rf"{path}.*{missing[0]}"):
            copier_of(fake, path)
        assert set(fake.live().values()) == {0}


@pytest.mark.parametrize("symbol", ["cuStreamWaitEvent", "cuMemHostRegister_v2", "cuDevicePrimaryCtxRelease_v2"])
def test_a_driver_without_what_every_path_needs_is_no_driver(symbol):
    with fake_driver(symbol) as fake:
        driver = _native.CudaDriver.open(fake.path)
        assert (driver.reason, driver.missing, driver.devices) == (f"the driver lacks {symbol}", [symbol], [])
        with pytest.raises(ValueError, match=symbol):
            _native.CudaCopier(driver, 0)


def test_where_host_addresses_mean_nothing_to_the_gpu_copies_go_one_by_one():
    with fake_driver() as fake:
        fake.set(host_pointer_usable=0)
        copier = copier_of(fake)
        assert copier.path == "async"
        assert [note.split(":")[0] for note in copier.notes if "addresses of registered" in note] == ["batch", "kernel"]
        assert_copies(copier)
        copier.close()
        with pytest.raises(ValueError, match=r"batch.*addresses of registered host memory"):
            copier_of(fake, "batch")
