"""A remote that the simulated nodes share: what all of them wrote, and links that carry one block after the other.

It has room for everything, loses nothing, and is never away. What all nodes together may read of it in a second is one
limit, and what a node's own network carries another: a block has come when both have carried it.
"""

from dataclasses import dataclass

from kvtier.block import BlockKey
from kvtier.replay.clock import Clock, Wire


@dataclass(frozen=True)
class RemoteSpeed:
    """True bytes and seconds. `node_bytes_per_s`: a node's own network, each way; `writes_per_node`: remote.write_rate."""

    read_bytes_per_s: float
    write_bytes_per_s: float
    latency_s: float = 0.002
    node_bytes_per_s: float = 12.5e9
    writes_per_node: float = 64 * 1024**2


class SharedRemote:
    def __init__(self, clock: Clock, speed: RemoteSpeed) -> None:
        self.speed = speed
        self.reads = Wire(clock, speed.latency_s, speed.read_bytes_per_s)
        self.writes = Wire(clock, speed.latency_s, speed.write_bytes_per_s)
        self.blocks: set[BlockKey] = set()
        self.read_bytes = self.written_bytes = 0


class Door:
    """One node's way to it."""

    def __init__(self, clock: Clock, remote: SharedRemote) -> None:
        self.remote = remote
        self._in = Wire(clock, 0.0, remote.speed.node_bytes_per_s)
        self._out = Wire(clock, 0.0, remote.speed.node_bytes_per_s)

    def read(self, size: int) -> float:
        """When a block of so many bytes is here."""
        self.remote.read_bytes += size
        return max(self._in.send(size), self.remote.reads.send(size))

    def write(self, size: int) -> float:
        """When it is there. `SharedRemote.blocks` is to hear of it then."""
        self.remote.written_bytes += size
        return max(self._out.send(size), self.remote.writes.send(size))
