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
    mapped: bool = False
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
