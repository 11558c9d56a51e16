"""Two nodes and a remote that they share: seeded, event for event, as simulation.py is for one node.

    node.py              a node as its daemon drives it, and what must hold of what its engines hear
    invariants_far.py    what must hold of its store whatever happened: one place a slot, pins, bytes under way
    far_model.py         the remote, and what its tier may count on: single flight, no block that is to stay on its node
    arena_model.py       content: what an answer names lies there whole; nobody writes what is read or written

What happens to the remote: answers come late, in any order, or never; it freezes and thaws; it refuses, loses, lies; it
loses all. What happens to nodes: see engine_model.py; conversations go on now on the one, now on the other. Daemons die,
sessions are forgotten by wish, weights change on one node and not on the other. At the end nothing is under way.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable

from kvtier.block import namespace_digest
from kvtier.codec import RAW
from kvtier.handover import Handover
from kvtier.store import BlockStore

from . import invariants_far
from .clock import Clock
from .codecs_model import CodecsModel
from .far_model import FarLuck, FarStore
from .node import Node
from .simulation import BROKEN, EVENTS_SHOWN, SLAB, Namespace
from .talking import Talk

EVENTS_MAX = 20_000
TEST = "tests/sim/test_far.py::test_two_nodes_survive_every_seed"
FAR_LUCK = (
    FarLuck(),
    FarLuck(0, 0, 0, 0, 0),
    FarLuck(fails=0.15, refuses=0.1),
    *[FarLuck(fails=0.1, lies=0.1, loses=0.3, late=0.4, call_s=0.03)] * 2,
)
TROUBLE_S = 3.0  # from one trouble of the remote to the next, on the mean


class FarWorld(Clock):
    slab, node = SLAB, Node

    def __init__(
        self,
        seed: int,
        plant: Callable[[BlockStore], None] = lambda store: None,
        has_upgrades: bool = False,
        spoil: Callable[[Handover], None] = lambda handover: None,
        has_codecs: bool = False,
    ) -> None:
        """`has_upgrades`: of daemons that end, most hand over what they have; `spoil` breaks what they hand over.
        `has_codecs`: below RAM some blocks are stored smaller, but not by a peer."""
        super().__init__(seed)
        self.has_upgrades, self.spoil = has_upgrades, spoil
        self.plant = plant
        self.codecs = CodecsModel(seed, lambda: self.now) if has_codecs else None
        self.is_peer = self.codecs is not None and self.codecs.random.random() < 0.2
        self.events = 0
        self.log: deque[str] = deque(maxlen=EVENTS_SHOWN)
        self.far = FarStore(self.random, self.random.choice((12, 400, 400)), self.random.choice(FAR_LUCK))
        self.far.codecs = self.codecs
        self.believed_s = self.random.choice(
            ((4.0, 2.2), (2.5, 2.5))
        )  # that a block is there, or isn't; longer than a call takes
        self.reads = self.random.choice((1, 8))  # times as many at once as usual: an arena here has few blocks
        self.bytes_per_s = self.random.choice((2**40, 2**40, 2**17))
        self.namespaces = [
            Namespace(
                namespace_digest({"n": i}),
                self.random.choice((4, 5, 8)),
                1,
                self.random.choice((128, 512)),
                is_chain,
                RAW if self.codecs is None else self.codecs.wish(),
            )
            for i, is_chain in enumerate((True, self.chance(0.7)))
        ]
        self.talks = {namespace: Talk(self.random) for namespace in self.namespaces}
        self.nodes = [self.node(self, name) for name in ("a", "b")]
        self.after(self.delay(TROUBLE_S), "trouble", self._trouble)

    def run(self) -> Counter[str]:
        """What was counted on all nodes. AssertionError, or whatever a broken store raises, with the last events as a
        note."""
        try:
            self._run_all()
            self._finale()
        except BROKEN as error:
            again = f'again: pytest "{TEST}" --sim-seed={self.seed}'
            error.add_note("\n".join([f"seed {self.seed}; the last events:", *self.log, again]))
            raise
        return sum((node.counts for node in self.nodes), Counter())

    # --- how ---------------------------------------------------------------------------------------------------

    def _trouble(self) -> None:
        if self.now > 10.0:
            return
        self.after(self.delay(TROUBLE_S), "trouble", self._trouble)
        if self.chance(0.2):
            self.far.values.clear()
        else:
            self.far.frozen_until = self.now + self.random.choice((0.3, 1.0, 4.0))
        for node in self.nodes:
            node.remote.freeze()

    def _run_all(self) -> None:
        while self._due:
            self.now, _, what, action = heapq.heappop(self._due)
            self.log.append(f"{self.now:9.4f} {what}")
            self.events += 1
            assert self.events < EVENTS_MAX, "it never comes to rest"
            action()
            for node in self.nodes:
                node.serve()

    def _finale(self) -> None:
        """All requests are over: no lease is left. The last engines reset and go: nothing at all is left."""
        for node in self.nodes:
            invariants_far.all_is_quiet(node)
            for engine in node.engines:
                assert engine.is_idle, f"{engine.name} still waits for something"
                engine.start()
        self._run_all()
        for engine in (engine for node in self.nodes for engine in node.engines):
            engine.reset_cache()
        self._run_all()
        for engine in (engine for node in self.nodes for engine in node.engines):
            engine.crash()
        self._run_all()
        for node in self.nodes:
            invariants_far.all_is_quiet(node)
            invariants_far.nothing_is_left(node)
            node.counts.update(node.store.stats.snapshot())
