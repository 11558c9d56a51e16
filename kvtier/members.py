"""Who is connected to kvtierd: the processes of each engine, and observers. The server owns them."""

import socket
from dataclasses import dataclass, field

from kvtier import protocol


@dataclass(eq=False)
class Client:
    """One socket peer."""

    sock: socket.socket
    pid: int
    uid: int
    since: float
    role: str = ""
    engine: str = ""
    mapped: protocol.Mapped | None = None  # what a worker said last
    ending: bool = False  # it was told to hang up, or is gone; what it still says is not heard
    reader: protocol.FrameReader = field(default_factory=protocol.FrameReader)
    unsent: bytearray = field(default_factory=bytearray)


@dataclass
class Members:
    """The processes of one engine, from the first that says Hello until the last is gone. All get one generation: a
    worker that comes back after that refuses jobs that were meant for its former slots."""

    generation: int
    scheduler: Client | None = None
    workers: set[Client] = field(default_factory=set)
    joined: bool = False  # the store knows it
    namespace: bytes = b""

    def mapped(self) -> list[protocol.Mapped]:
        """What those of its workers said that can copy."""
        return [worker.mapped for worker in self.workers if worker.mapped is not None]

    @property
    def maps_gpu(self) -> bool:
        """Whether all its workers read the GPU tier."""
        return bool(self.workers) and all(w.mapped is not None and w.mapped.maps_gpu for w in self.workers)

    def copying(self, capacity: int) -> dict[str, object]:
        """How its workers copy, as JSON values; bytes of an arena of `capacity`. One that copies by DMA and could not
        register all of it, for it may lock too little memory, is slow with the rest: that is what is `unpinned`."""
        mapped = self.mapped()
        dma = [worker.pinned for worker in mapped if worker.copies not in ("", "memcpy")]
        return {
            "copies": sorted({worker.copies for worker in mapped if worker.copies}),
            "maps_gpu": self.maps_gpu,
            "pinned_bytes": min(capacity, *dma) if dma else 0,
            "unpinned_bytes": max(0, capacity - min(dma)) if dma else 0,
        }
