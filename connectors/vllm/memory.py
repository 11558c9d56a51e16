"""kvtierd's memory in a worker: mapped, made known to what copies, and let go of, for one stay at the daemon.

To register an arena with the GPU's driver takes a tenth of a second a gigabyte on small pages, and so does the way back;
both run on threads, for this is called between steps of the engine. Memory that is not `ready` is not to be used yet.
"""

import os
import threading

from kvtier.connectors.vllm.copies import CantCopy, Copies
from kvtier.connectors.vllm.layout import Places

from kvtier import _native
from kvtier.protocol import Memory


class MappedMemory:
    def __init__(self, memory: Memory, copies: Copies) -> None:
        """Takes `memory.fd` over. OSError, ValueError, RuntimeError: the arena can't be mapped."""
        self.generation = memory.generation
        try:
            self._arena = _native.Arena.attach(memory.fd, memory.size)
        finally:
            os.close(memory.fd)
        self._gpu = None
        self._gpu_note = ""
        self._pin = copies.register(self._arena.address, memory.size)
        if memory.gpu:
            try:
                self._gpu = copies.attach_gpu(memory.gpu, memory.gpu_size, memory.gpu_uuid)
            except CantCopy as error:
                self._gpu_note = f"blocks of the GPU tier are loaded from RAM: {error}"
        gpu = (self._gpu.address, self._gpu.size) if self._gpu is not None else (0, 0)
        self.places = Places(self._arena.address, memory.size, *gpu)

    @property
    def ready(self) -> bool:
        """Whether all is registered that can be. To be asked now and then."""
        return self._pin is None or bool(self._pin.ready)

    @property
    def notes(self) -> list[str]:
        """What could not be had, a line each."""
        return [note for note in (self._gpu_note, self._pin.note if self._pin is not None else "") if note]

    @property
    def pinned_bytes(self) -> int:
        """Of the arena, that are registered; 0 where nothing need be."""
        return int(self._pin.pinned_bytes) if self._pin is not None else 0

    @property
    def is_whole(self) -> bool:
        return self._pin is None or self.pinned_bytes == self.places.arena_bytes

    @property
    def maps_gpu(self) -> bool:
        return self._gpu is not None

    def let_go(self) -> threading.Thread | None:
        """Unmap it; nothing may copy any more. On a thread where that takes long: the engine would stand still for
        seconds, and nobody waits for it but the memory of another daemon, which would be locked beside this one."""
        if self._pin is None:
            self._close()
            return None
        thread = threading.Thread(target=self._close, name="kvtier-unmap", daemon=True)
        thread.start()
        return thread

    def _close(self) -> None:
        """What is registered must be mapped until it no longer is."""
        if self._pin is not None:
            self._pin.close()
        if self._gpu is not None:
            self._gpu.close()
        self._arena.close()
