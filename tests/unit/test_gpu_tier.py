"""The GPU tier on the fake driver, where the contract suite says nothing: what fails, who goes first, which device."""

import ctypes
import select
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fake_cuda import build as fake_cuda
from fake_driver import NOTHING_LEFT, fake_driver

from kvtier import _native
from kvtier.block import KEY_BYTES, SLOT_UNIT
from kvtier.protocol import GPU_STAMP_BYTES, gpu_stamp_of
from kvtier.tiers import gpu as gpu_module
from kvtier.tiers.gpu import GpuTier, device_named
from kvtier.transfer import Demote, Erase, Finished, Flush, Forget, Promote, Remember, Transfer

MIB = 1024**2
WAIT_S = 30.0
KEY = b"k" * KEY_BYTES

DEVICES: list[dict[str, Any]] = [
    {"ordinal": 0, "name": "H100", "uuid": "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", "pci": "0000:04:00.0"},
    {"ordinal": 1, "name": "H200", "uuid": "000102030405060708090a0b0c0d0e0f", "pci": "0001:c1:00.0"},
]


class Bench:
    """A tier on the fake driver, and the switches of that."""

    def __init__(self) -> None:
        library = fake_cuda.library()
        self._fake = ctypes.CDLL(str(library))
        self.arena = np.zeros(8 * MIB, np.uint8)
        self.tier = GpuTier(_native.CudaDriver.open(str(library)), 0, 4 * MIB, self.arena)

    def set(self, name: str, value: int) -> None:
        self._fake.fake_cuda_set(name.encode(), ctypes.c_long(value))

    def reset(self) -> None:
        self._fake.fake_cuda_reset()

    def do(self, *orders: Transfer) -> list[Finished]:
        """In the order in which they are finished."""
        for order in orders:
            self.tier.start(order)
        return self.wait(len(orders))

    def wait(self, n: int) -> list[Finished]:
        done: list[Finished] = []
        until = time.monotonic() + WAIT_S
        while len(done) < n:
            assert select.select([self.tier.fileno()], [], [], until - time.monotonic())[0], "never finished"
            done += self.tier.poll()
        return done


@pytest.fixture
def bench() -> Iterator[Bench]:
    if fake_cuda.compiler() is None:
        pytest.skip("no compiler for the fake driver")
    made = Bench()
    yield made
    made.tier.close()
    made.reset()


def demote(ticket: int, slot: int = 0, place: int = 0, size: int = SLOT_UNIT) -> Demote:
    return Demote(ticket, KEY, slot, place, size, 0, 0)


# --- what fails --------------------------------------------------------------------------------------------------


def test_after_a_copy_that_failed_orders_are_refused_for_a_while_and_then_taken_again(bench, monkeypatch):
    monkeypatch.setattr(gpu_module, "RETRY_S", 0.2)
    bench.set("fail_at:cuMemcpyAsync", 1)
    assert [done.fault for done in bench.do(demote(1))] == ["io"]
    assert bench.tier.read_only and "cuMemcpyAsync" in str(bench.tier.state()["reason"])
    refused = [demote(2), Erase(3, 0, SLOT_UNIT), Forget(4, 0, 1), Remember(5, b"d" * 32, 0, 0)]
    assert [done.fault for done in bench.do(*refused)] == ["io"] * 4
    while bench.tier.read_only:
        time.sleep(0.01)
    assert [done.fault for done in bench.do(demote(6))] == [""]
    assert bench.tier.state()["failed"] == 1


def test_a_block_is_read_back_while_writes_are_refused(bench):
    bench.arena[:SLOT_UNIT] = 7
    (done,) = bench.do(demote(1, slot=0, place=5))
    bench.set("fail_at:cuMemcpyAsync", 1)
    assert [done.fault for done in bench.do(demote(2))] == ["io"]
    assert bench.tier.read_only
    assert [done.fault for done in bench.do(Promote(3, KEY, 9, 5, SLOT_UNIT, done.checksum))] == [""]
    assert (bench.arena[9 * SLOT_UNIT : 10 * SLOT_UNIT] == 7).all()


def test_zeros_that_can_not_be_written_are_a_fault(bench):
    bench.do(demote(1))
    bench.set("fail_at:cuMemsetD8Async", 1)
    assert [done.fault for done in bench.do(Erase(2, 0, SLOT_UNIT))] == ["io"]


def test_nothing_is_promised_to_survive(bench):
    assert [done.fault for done in bench.do(Flush(1))] == ["volatile"]
    assert len(bench.tier.recovered.keys) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_that_nobody_expected_is_heard_by_whoever_polls(bench):
    bench.tier.start(Erase(1, 1 << 20, SLOT_UNIT))  # beyond the device's memory: nobody may ask that
    with pytest.raises(RuntimeError, match="the GPU tier's thread has ended"):
        bench.wait(1)
    assert bench.tier.state()["pending"] == 1


# --- who goes first ----------------------------------------------------------------------------------------------


def test_a_read_waits_for_a_few_of_the_writes_before_it(bench):
    (first,) = bench.do(demote(1, place=0))
    bench.set("max_delay_us", 3000)
    writes = [demote(2 + n, slot=n % 16, place=16 + n % 16) for n in range(20)]
    done = [done.ticket for done in bench.do(*writes, Promote(99, KEY, 64, 0, SLOT_UNIT, first.checksum))]
    assert done.index(99) <= 2 * gpu_module.AT_ONCE
    assert sorted(done) == [*range(2, 22), 99]


def test_behind_the_places_lies_the_stamp_and_stays(bench):
    bench.arena[:SLOT_UNIT] = 7
    bench.do(demote(1, place=4 * MIB // SLOT_UNIT - 1), Erase(2, 0, SLOT_UNIT))
    behind = ctypes.string_at(bench.tier._memory.address + 4 * MIB, GPU_STAMP_BYTES)
    assert behind == gpu_stamp_of(bench.tier.stamp).tobytes()


def test_without_its_stamp_there_is_no_tier_and_nothing_is_left():
    with fake_driver() as fake:
        GpuTier(fake.open(), 0, 4 * MIB, np.zeros(8 * MIB, np.uint8)).close()
        fake.fail("cuMemcpyAsync", 1, at=fake.calls("cuMemcpyAsync"))  # the last of them
        with pytest.raises(RuntimeError, match="cuMemcpyAsync"):
            GpuTier(fake.open(), 0, 4 * MIB, np.zeros(8 * MIB, np.uint8))
        assert fake.live() == NOTHING_LEFT


def test_what_it_did_is_counted(bench):
    bench.do(demote(1, place=0), demote(2, place=1), Erase(3, 0, SLOT_UNIT))
    state = bench.tier.state()
    assert (state["copied_bytes"], state["erased_bytes"], state["pending"]) == (2 * SLOT_UNIT, SLOT_UNIT, 0)
    assert state["device"] == "Fake GPU 0" and state["pinned_bytes"] in range(8 * MIB + 1)


# --- which device ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "ordinal"),
    [
        ("0", 0),
        ("1", 1),
        ("0000:04:00.0", 0),
        ("00000000:04:00.0", 0),
        ("04:00.0", 0),
        ("00000001:C1:00.0", 1),
        ("GPU-00010203-0405-0607-0809-0a0b0c0d0e0f", 1),
        ("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", 0),
    ],
)
def test_a_device_is_named_by_number_address_or_uuid(wanted, ordinal):
    assert device_named(wanted, DEVICES) == ordinal


@pytest.mark.parametrize("wanted", ["2", "4", "", "c1:00.0", "GPU-", "cuda:0"])
def test_what_names_none_is_answered_with_those_that_there_are(wanted):
    with pytest.raises(ValueError, match=r"there is no GPU '.*'; there are 0 \(H100, 0000:04:00.0, GPU-f0f1"):
        device_named(wanted, DEVICES)
