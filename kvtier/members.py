"""Who is connected to kvtierd: the processes of each engine, and observers. The server owns them."""

import socket
from dataclasses import dataclass, field

from kvtier import protocol

LAST_WORDS = 64  # bytes that are kept of what is not heard


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
    last_words: bytes = b""  # what it said last

    @property
    def copies_by_gpu(self) -> bool:
        """A worker whose copies don't end with its threads."""
        return self.mapped is not None and self.mapped.by_gpu

    def keep_last(self, data: bytes) -> None:
        self.last_words = (self.last_words + data[-LAST_WORDS:])[-LAST_WORDS:]

    def row(self, now: float) -> dict[str, object]:
        """For observers."""
        return {"role": self.role, "engine": self.engine, "pid": self.pid, "connected_s": round(now - self.since, 3)}


@dataclass
class Members:
    """The processes of one engine, from the first that says Hello until the last is gone. All get one generation: a
    worker that comes back after that refuses jobs that were meant for its former slots."""

    generation: int
    uid: int = -1  # of the first of them; the others must have it, too
    scheduler: Client | None = None
    workers: set[Client] = field(default_factory=set)
    joined: bool = False  # the store knows it
    namespace: bytes = b""

    def mapped(self) -> list[protocol.Mapped]:
        """What those of its workers said that can copy."""
        return [worker.mapped for worker in self.workers if worker.mapped is not None and not worker.ending]

    @property
    def maps_gpu(self) -> bool:
        """Whether all its workers read the GPU tier."""
        return bool(self.workers) and len(self.mapped()) == len(self.workers) and all(m.maps_gpu for m in self.mapped())

    def copying(self, capacity: int) -> dict[str, object]:
        """How its workers copy, as JSON values; bytes of an arena of `capacity`. One that copies by DMA and could not
        register all of it, for it may lock too little memory, is slow with the rest: that is what is `unpinned`."""
        mapped = self.mapped()
        dma = [worker.pinned for worker in mapped if worker.by_gpu]
        return {
            "copies": sorted({worker.copies for worker in mapped if worker.copies}),
            "maps_gpu": self.maps_gpu,
            "pinned_bytes": min(capacity, *dma) if dma else 0,
            "unpinned_bytes": max(0, capacity - min(dma)) if dma else 0,
        }
