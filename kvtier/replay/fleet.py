"""Many nodes on one clock that share one remote: each has its own requests, and what one computed another may find."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kvtier.replay.clock import Clock
from kvtier.replay.cluster import Outcome, Served, Shape
from kvtier.replay.remote import RemoteSpeed, SharedRemote
from kvtier.replay.trace import Trace


@dataclass
class FleetOutcome:
    """What one arm came to on all nodes. Bytes are true ones, of the remote: all nodes together."""

    nodes: list[Outcome]
    read_bytes: int
    written_bytes: int
    read_busy_s: float
    write_busy_s: float
    seconds: float  # until the last first token

    @property
    def ttft_s(self) -> np.ndarray:
        """Of every request."""
        return np.concatenate([node.ttft_s for node in self.nodes])

    def tokens(self, which: str) -> int:
        """One of Outcome's counts of tokens, of all nodes."""
        return sum(getattr(node, f"{which}_tokens") for node in self.nodes)


def replay_nodes(
    traces: Sequence[Trace],
    shape: Shape,
    arm: str,
    remote: RemoteSpeed | None,
    progress: Callable[[int], None] = lambda done: None,
) -> FleetOutcome:
    """A node for each trace; equal blocks have equal numbers in all of them. `remote` None: they have none. `progress`
    hears, now and then, how many requests have their first token."""
    clock = Clock()
    shared = None if remote is None else SharedRemote(clock, remote)
    done = 0

    def one_more(_: int) -> None:
        nonlocal done
        done += 1
        progress(done)

    nodes = [Served(clock, trace, shape, arm, one_more, shared) for trace in traces]
    for node in nodes:
        node.begin()
    requests = sum(len(trace.requests) for trace in traces)
    while done < requests and clock.step():
        pass
    return FleetOutcome(
        [node.outcome() for node in nodes],
        shared.read_bytes if shared else 0,
        shared.written_bytes if shared else 0,
        shared.reads.busy_s if shared else 0.0,
        shared.writes.busy_s if shared else 0.0,
        clock.now,
    )
