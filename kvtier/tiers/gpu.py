"""The GPU tier: places in one device's memory. It keeps the contract of tiers/base.py, and is volatile.

Everything that takes time is done by one thread: it checksums a slot, hands the copy to the device and waits for it.

    start --> orders --> the thread --> done --> poll         an eventfd says that there is something to poll
                         checksum, copy, zero

The memory is this process's own. Engines map it by `handle` and read it themselves (mirror.py says what). Whoever
closes the tier first waits for their copies. When this process is killed, what they still read means nothing, whether
the driver keeps the memory for them or not, and the load has failed. A new daemon has new memory under a new generation.

Behind the places lies a stamp that engines know (protocol.gpu_stamp_of). There are machines where one GPU reads wrong
bytes from another and no error is reported; an engine that reads another stamp there reads no places.
"""

import contextlib
import os
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kvtier import _native
from kvtier.block import SLOT_UNIT, BlockKey
from kvtier.protocol import GPU_SEED_BYTES, GPU_STAMP_BYTES, gpu_stamp_of
from kvtier.tiers.base import Recovered
from kvtier.transfer import Demote, Erase, Finished, Flush, Promote, Transfer

AT_ONCE = 4  # writes; then it is looked whether somebody wants to read
RETRY_S = 1.0  # after a failure the device takes no orders for so long

Begun = tuple[int, int, str]  # the copy's ticket, the slot's checksum, why it did not even begin


class GpuTier:
    def __init__(self, driver: _native.CudaDriver, device: int, capacity: int, arena: np.ndarray) -> None:
        """`device`: its ordinal. `capacity`: bytes of it besides the stamp's, a multiple of 2 MiB. `arena`: the bytes that
        slots name. MemoryError: the device has no such room. RuntimeError, ValueError: the driver's reason."""
        self.recovered = Recovered()
        self._arena, self._address = arena, arena.ctypes.data
        with contextlib.ExitStack() as undone:
            self._memory = _native.DeviceArena.create(driver, device, capacity + GPU_STAMP_BYTES)
            undone.callback(self._memory.close)
            self.handle: bytes = self._memory.handle
            # One call a slot: as fast as any way for pieces so large, and right for memory that is not registered yet.
            self._copier = _native.CudaCopier(driver, device, path="async", low_priority=True)
            undone.callback(self._copier.close)
            self.stamp = secrets.token_bytes(GPU_SEED_BYTES)
            self._write(gpu_stamp_of(self.stamp), self._memory.address + capacity)
            self._pin = _native.CudaPin(driver, device, self._address, arena.nbytes)
            undone.pop_all()
        named = driver.devices[device]
        self.uuid, self.name, self.capacity = bytes.fromhex(named["uuid"]), str(named["name"]), capacity
        self._orders: queue.SimpleQueue[Transfer | None] = queue.SimpleQueue()
        self._done: deque[Finished] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._taken = self._ended = 0  # orders; counted by the caller, and by the thread
        self._refused_until, self._reason = float("-inf"), ""
        self._failed = self._copied_bytes = self._erased_bytes = 0
        self._closed = self._is_over = False
        self._thread = threading.Thread(target=self._work, name="kvtier-gpu", daemon=True)
        self._thread.start()

    @property
    def read_only(self) -> bool:
        """Something failed a moment ago."""
        return time.monotonic() < self._refused_until

    def start(self, transfer: Transfer) -> None:
        if self._closed:
            self._done.append(Finished(transfer.ticket, "closed"))
        elif isinstance(transfer, Flush):
            self._finish(Finished(transfer.ticket, "volatile"))
        elif self.read_only and not isinstance(transfer, Promote):
            self._finish(Finished(transfer.ticket, "io"))
        elif isinstance(transfer, Demote | Promote | Erase):
            self._taken += 1
            self._orders.put(transfer)
        else:  # it remembers nothing, so there is nothing to forget
            self._finish(Finished(transfer.ticket))

    def poll(self) -> list[Finished]:
        if not self._closed:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            if self._is_over:
                raise RuntimeError("the GPU tier's thread has ended; what it said is above")
        return [self._done.popleft() for _ in range(len(self._done))]

    def fileno(self) -> int:
        return self._wake

    def state(self) -> Mapping[str, object]:
        """Bytes and counts since the start."""
        return {
            "device": self.name,
            "read_only": self.read_only,
            "reason": self._reason,
            "pending": self._taken - self._ended,
            "copied_bytes": self._copied_bytes,
            "erased_bytes": self._erased_bytes,
            "failed": self._failed,
            "pinned_bytes": self._pin.pinned_bytes,
            "notes": [self._pin.note] if self._pin.note else [],
        }

    def close(self) -> None:
        """Waits for the device. What is finished by then, `poll` gives as ever."""
        if self._closed:
            return
        self._orders.put(None)
        self._thread.join()
        self._closed = True
        self._copier.close()
        self._pin.close()
        self._memory.close()
        os.close(self._wake)

    def _write(self, content: np.ndarray, address: int) -> None:
        """Before the thread begins. RuntimeError."""
        self._copier.wait(self._submit(content.ctypes.data, address, content.nbytes))
        for _, _, _, error in self._copier.poll():
            if error:
                raise RuntimeError(error)

    def _submit(self, source: int, target: int, size: int) -> int:
        """One piece. Its ticket."""
        return int(self._copier.submit(*(np.array([number], np.uint64) for number in (source, target, size))))

    # --- the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._serve()
        finally:  # with an error that nobody expected: orders would wait for ever, so whoever polls must hear of it
            self._is_over = True
            os.eventfd_write(self._wake, 1)

    def _serve(self) -> None:
        """Reads first, and then a few of the others, so that a read waits for no more than these."""
        reads: list[Transfer] = []
        others: deque[Transfer] = deque()
        is_over = False
        while not (is_over and not others):
            with contextlib.suppress(queue.Empty):
                while (order := self._orders.get(block=not (is_over or others or reads))) is not None:
                    reads.append(order) if isinstance(order, Promote) else others.append(order)
                is_over = True
            self._carry_out([*reads, *(others.popleft() for _ in range(min(AT_ONCE, len(others))))])
            reads.clear()

    def _carry_out(self, orders: Iterable[Transfer]) -> None:
        """The device copies one while the next is checksummed."""
        begun = [(order, self._begin(order)) for order in orders]
        ended: dict[int, tuple[float, str]] = {}
        for order, (ticket, checksum, error) in begun:
            seconds = 0.0
            if ticket:
                self._copier.wait(ticket)
                ended |= {number: (took, why) for number, _, took, why in self._copier.poll()}
                seconds, error = ended.pop(ticket)
            self._ended += 1
            self._finish(self._outcome(order, checksum, error, seconds))

    def _begin(self, order: Transfer) -> Begun:
        try:
            if isinstance(order, Erase):
                self._memory.zero(order.place * SLOT_UNIT, order.size)
                return 0, 0, ""
            assert isinstance(order, Demote | Promote)
            checksum = self._checksum(order) if isinstance(order, Demote) else 0
            slot, place = self._address + order.slot * SLOT_UNIT, self._memory.address + order.place * SLOT_UNIT
            source, target = (slot, place) if isinstance(order, Demote) else (place, slot)
            return self._submit(source, target, order.size), checksum, ""
        except RuntimeError as error:
            return 0, 0, str(error)

    def _outcome(self, order: Transfer, checksum: int, error: str, seconds: float) -> Finished:
        if error:
            self._failed += 1
            self._refused_until, self._reason = time.monotonic() + RETRY_S, error
            return Finished(order.ticket, "io", 0, seconds)
        if isinstance(order, Promote):
            is_right = self._checksum(order) == order.checksum
            return Finished(order.ticket, "" if is_right else "corrupt", order.checksum if is_right else 0, seconds)
        if isinstance(order, Erase):
            self._erased_bytes += order.size
        else:
            assert isinstance(order, Demote)
            self._copied_bytes += order.size
        return Finished(order.ticket, "", checksum, seconds)

    def _checksum(self, order: Demote | Promote) -> int:
        begin = order.slot * SLOT_UNIT
        return int(_native.crc32c(self._arena[begin : begin + order.size], _seed(order.key)))

    def _finish(self, done: Finished) -> None:
        self._done.append(done)
        os.eventfd_write(self._wake, 1)


def device_named(wanted: str, devices: list[dict[str, Any]]) -> int:
    """The ordinal of a device by its number, its PCI address or its UUID, as nvidia-smi writes them. ValueError: there is
    none such; it names those that there are."""
    for device in devices:
        names = {str(device["ordinal"]), _pci(device["pci"]), _uuid(device["uuid"])}
        if {wanted.strip(), _pci(wanted), _uuid(wanted)} & names:
            return int(device["ordinal"])
    there = "; ".join(f"{d['ordinal']} ({d['name']}, {d['pci']}, GPU-{d['uuid']})" for d in devices)
    raise ValueError(f"there is no GPU {wanted!r}; there are {there or 'none'}")


def _pci(text: str) -> str:
    """Its domain has four digits here and eight there, or is left out."""
    parts = text.strip().lower().removesuffix(".0").split(":")
    return ":".join(part.lstrip("0") for part in ["", *parts][-3:]) if len(parts) in (2, 3) else text


def _uuid(text: str) -> str:
    return text.strip().lower().removeprefix("gpu-").replace("-", "")


def _seed(key: BlockKey) -> int:
    """With it a place that holds another block's bytes never fits."""
    return int(_native.crc32c(key))
