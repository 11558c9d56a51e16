"""kvtierd's memory in a worker: mapped, made known to what copies, and let go of, for one stay at the daemon.

To register an arena with the GPU's driver takes a tenth of a second a gigabyte on small pages, and so does the way back;
both run on threads, for this is called between steps of the engine. So does mapping the GPU tier: its stamp is read, and
to free what it was read into waits for the GPU. Memory that is not `ready` is not to be used yet.
"""

import os
import threading
from typing import Any

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
        self.places = Places(self._arena.address, memory.size)
        self._gpu: Any = None
        self._gpu_note = ""
        self._pin = copies.register(self._arena.address, memory.size)
        self._mapping = threading.Thread(target=self._map_gpu, args=(memory, copies), name="kvtier-map", daemon=True)
        if memory.gpu and memory.gpu_stamp:
            self._mapping.start()

    @property
    def ready(self) -> bool:
        """Whether all is registered and mapped that can be. To be asked now and then."""
        return not self._mapping.is_alive() and (self._pin is None or bool(self._pin.ready))

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

    def _map_gpu(self, memory: Memory, copies: Copies) -> None:
        try:
            self._gpu = copies.attach_gpu(memory.gpu, memory.gpu_size, memory.gpu_uuid, memory.gpu_stamp)
        except CantCopy as error:
            self._gpu_note = f"blocks of the GPU tier are loaded from RAM: {error}"
        if self._gpu is not None:
            self.places = Places(self._arena.address, memory.size, self._gpu.address, memory.gpu_size)

    def _close(self) -> None:
        """What is registered must be mapped until it no longer is."""
        if self._mapping.ident is not None:  # it was started
            self._mapping.join()
        if self._pin is not None:
            self._pin.close()
        if self._gpu is not None:
            self._gpu.close()
        self._arena.close()
