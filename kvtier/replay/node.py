"""A node's tiers, driven by a clock that jumps: the BlockStore that kvtierd runs, and drives and a remote that only take
time.

A TiB in true size would need gigabytes here: the store has columns with a row for each 64 KiB. So a block of the trace
is one slot of 64 KiB, whatever its size, and each number of bytes that the store is told is divided by the same factor:
capacities, the write budget, link speeds. Seconds, tokens and blocks are true. This file alone knows of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvtier.admission import Budget
from kvtier.arena import SLAB_ALIGN, SLABS_MIN, slab_bytes_for
from kvtier.block import ABSENT, KEY_BYTES, SLOT_UNIT, leading, unpack_keys
from kvtier.config import DAEMON, Config
from kvtier.deciding import ENGINE_BYTES_PER_S, ENGINE_LATENCY_S
from kvtier.decision import Ask
from kvtier.estimators import Link, Prefill
from kvtier.extents import EXTENT_BYTES_MIN, Extents, extent_bytes_for
from kvtier.guard import Guard
from kvtier.replay.clock import Clock, Wire
from kvtier.replay.codecs import RAW_SPEED, CodecSpeed
from kvtier.replay.remote import Door, SharedRemote
from kvtier.session import Hints
from kvtier.staging import READING_BYTES_MAX
from kvtier.store import DRIVE_BYTES_PER_S, DRIVE_LATENCY_S, BlockStore
from kvtier.transfer import Demote, Finished, Promote, Seek, Transfer

NAMESPACE = bytes(32)
CPU_BLOCKS_MIN, NVME_BLOCKS_MIN = SLAB_ALIGN // SLOT_UNIT, 2 * EXTENT_BYTES_MIN // SLOT_UNIT
LEND_BLOCKS = 32  # an engine's slots to save into
RECORD_S = 0.001  # to write down that something is remembered or forgotten
REPLAN_S = TICK_S = 0.05  # how often waiting is thought over, and what idle sessions may want
REMOTE_TICK_S = 1.0  # the latter where there are no drives, for nothing is fetched ahead from a remote
POLICY = "value"  # kvtierd's own
FOR_EVER_S = 1e12
_DEFAULTS = Config(DAEMON, {})


@dataclass(frozen=True)
class Tiers:
    """What a node has below its GPUs. Bytes and seconds, true ones. The codec is of the drives; its ratio, what it makes
    of a place."""

    cpu_bytes: int
    nvme_bytes: int = 0
    nvme_read_bytes_per_s: float = 6e9
    nvme_write_bytes_per_s: float = 4e9
    nvme_latency_s: float = 0.0005
    nvme_writes_per_day: float = 1.0  # of the drives' size
    codec: CodecSpeed = RAW_SPEED
    codec_threads: int = 1

    def uncoded(self) -> "Tiers":
        """Drives without a codec that do as much for blocks: a day's writes are so much more, as the room is."""
        return replace(
            self,
            nvme_bytes=int(self.nvme_bytes * self.codec.ratio),
            nvme_read_bytes_per_s=self.codec.reads(self.nvme_read_bytes_per_s, self.codec_threads),
            nvme_write_bytes_per_s=self.codec.writes(self.nvme_write_bytes_per_s, self.codec_threads),
            codec=RAW_SPEED,
        )


Answered = Callable[[str, int, np.ndarray], None]


class Node:
    def __init__(
        self,
        clock: Clock,
        tiers: Tiers,
        block_bytes: int,
        block_tokens: int,
        decides: bool,
        knows: Link | None = None,
        policy: str = POLICY,
        share: float = 0.0,
        remote: SharedRemote | None = None,
    ) -> None:
        """`decides`: what is fetched is the store's own decision; else it gives all it is asked for, however long it
        takes. `knows`: it needn't learn how fast everything is; the link from RAM to an engine, in true bytes. `policy`:
        the store's, which chooses what leaves RAM. `share`: of RAM that engines may hold, and that leases may; 0: as
        kvtierd has it. `remote`: other nodes of the same clock have it too. Where it has to learn, it begins with what it
        would remember of a remote that nobody else uses."""
        self.answered: Answered = lambda engine, lease, slots: None  # who wants to hear of lookups that had to wait
        tiers = tiers.uncoded()
        self.reads = Wire(clock, tiers.nvme_latency_s, tiers.nvme_read_bytes_per_s)
        self.writes = Wire(clock, tiers.nvme_latency_s, tiers.nvme_write_bytes_per_s)
        self.block_bytes = block_bytes
        self._clock, self._block_tokens, self._decides, self._knows = clock, block_tokens, decides, knows
        self._scale = block_bytes / SLOT_UNIT
        self._lent: dict[str, list[int]] = {}
        self._replans = False
        self.store = BlockStore(
            whole_slabs(int(tiers.cpu_bytes / self._scale)),
            lend_share=share or _DEFAULTS.number("lend.max_share"),
            lease_share=share or _DEFAULTS.number("lease.max_share"),
            policy=policy,
        )
        self.store.decisions.mode = "decide" if decides else "always"
        self.store.decisions.guard = Guard(_DEFAULTS.number("cost.holdout") if decides and knows is None else 0.0)
        self._door: Door | None = None
        if tiers.nvme_bytes:
            self._attach(tiers)
        if remote is not None:
            self._attach_remote(remote)
        if tiers.nvme_bytes or remote is not None:
            self._tick(TICK_S if tiers.nvme_bytes else REMOTE_TICK_S)

    def _attach(self, tiers: Tiers) -> None:
        capacity = int(tiers.nvme_bytes / self._scale)
        extent = extent_bytes_for(capacity, 1)
        budget = Budget(tiers.nvme_writes_per_day * capacity, self._clock.now)
        stage_s = _DEFAULTS.number("nvme.stage_deadline_ms") / 1e3 if self._decides else FOR_EVER_S
        link = Link(tiers.nvme_latency_s, tiers.nvme_read_bytes_per_s)
        link = self._scaled(link if self._knows else Link(DRIVE_LATENCY_S, DRIVE_BYTES_PER_S))
        self.store.attach(Extents(capacity // extent, extent), budget, stage_s, {}, link)
        assert self.store.lower is not None
        # So much is read at once of true blocks; of ours it would be all that anybody waits for.
        self.store.lower.staging.bytes_max = max(1, READING_BYTES_MAX // self.block_bytes) * SLOT_UNIT

    def _attach_remote(self, remote: SharedRemote) -> None:
        speed = remote.speed
        self._door = Door(self._clock, remote)
        budget = Budget.of_rate(speed.writes_per_node / self._scale, self._clock.now)
        stage_s = _DEFAULTS.number("remote.stage_deadline_ms") / 1e3 if self._decides else FOR_EVER_S
        link = Link(speed.latency_s, min(speed.node_bytes_per_s, speed.read_bytes_per_s))
        self.store.attach_remote(budget, self._scaled(link), stage_s)
        self.store.staging.bytes_max = max(1, READING_BYTES_MAX // self.block_bytes) * SLOT_UNIT

    def _scaled(self, link: Link) -> Link:
        return Link(link.latency_s, link.bytes_per_s / self._scale)

    # --- engines -----------------------------------------------------------------------------------------------

    def join(self, engine: str, lend: int = LEND_BLOCKS) -> None:
        self._lent[engine] = []
        link = self._scaled(self._knows or Link(ENGINE_LATENCY_S, ENGINE_BYTES_PER_S))
        self.store.decisions.engine_link = (link.latency_s, link.bytes_per_s)
        self.store.join(engine, NAMESPACE, SLOT_UNIT, self._block_tokens, lend, self._clock.now)
        self.settle()

    def pace(self, engine: str, prefill: Prefill, arrivals_per_s: float, busy: float) -> None:
        counts = {"arrivals_mhz": round(arrivals_per_s * 1000), "busy_permille": round(busy * 1000), "running": 0}
        self.store.pace(engine, {**prefill.to_counts(), **counts})

    # --- requests ----------------------------------------------------------------------------------------------

    def match(self, keys: bytes, skip: int) -> tuple[int, int, int]:
        """Of the blocks behind the first `skip`: how many are in RAM, from the first on; how many on this node; how many
        anywhere."""
        rest = keys[skip * KEY_BYTES :]
        is_here = self.store.ram.index.find(rest) != ABSENT
        in_ram = leading(is_here)
        if self.store.lower is not None and in_ram < len(is_here):
            is_here |= self.store.lower.extents.find(rest) != ABSENT
        here = leading(is_here)
        if self._door is not None and here < len(is_here):
            there = self._door.remote.blocks
            is_here |= np.array([key in there for key in unpack_keys(rest)], dtype=bool)
        return in_ram, here, leading(is_here)

    def begin(self, engine: str, request: str, hints: Hints) -> None:
        """What a client says of its request, before the lookup."""
        self.store.begin(engine, request, hints, self._clock.now)

    def lookup(self, engine: str, lease: int, keys: bytes, skip: int, ask: Ask) -> np.ndarray | None:
        """Slots; or None, and `answered` hears of it later."""
        slots = self.store.lookup(engine, lease, keys, skip, self._clock.now, ask)
        self.settle()
        if slots is None and self._decides and not self._replans:
            self._replans = True
            self._clock.at(self._clock.now + REPLAN_S, self._replan)
        return slots

    def notice(self, engine: str, lease: int, keys: bytes, ask: Ask) -> None:
        """A request that wants nothing; the store sees whose it is."""
        self.store.lookup(engine, lease, keys, len(keys) // KEY_BYTES, self._clock.now, ask)
        self.store.release(engine, lease, 0, self._clock.now)

    def due(self, engine: str, lease: int) -> None:
        self.store.due(engine, lease, self._clock.now)
        self.settle()

    def release(self, engine: str, lease: int, loaded: int, load_s: float) -> None:
        self.store.release(engine, lease, loaded, self._clock.now, load_s)
        self.settle()

    def save(self, engine: str, keys: bytes, request: str) -> None:
        """What of these, a prompt's, is nowhere yet, as far as there are slots."""
        is_new = self.store.ram.index.find(keys) == ABSENT
        if self.store.lower is not None:
            is_new &= self.store.lower.extents.find(keys) == ABSENT
        lent = self._lent[engine]
        new, parents = unpacked(keys)[is_new], unpacked(parents_of(keys))[is_new]
        while len(new) and lent:
            n = min(len(new), len(lent))
            slots = np.array(lent[-n:], dtype=np.uint32)
            del lent[-n:]
            self.store.commit(engine, new[:n].tobytes(), slots, parents[:n].tobytes(), request, self._clock.now)
            new, parents = new[n:], parents[n:]
            self.settle()

    def end(self, engine: str, keys: bytes, request: str) -> None:
        """The request is over; all of these were used."""
        self.store.touch(engine, keys, request, self._clock.now)
        self.settle()

    # --- the drives --------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Whatever the last event brought about. Writes that begin together are said to end together, with the last of
        them: nobody waits for one alone."""
        now, ends = self._clock.now, 0.0
        written: list[Transfer] = []
        for order in self.store.transfers(now):
            if isinstance(order, Promote):
                self._finish_at(self.reads.send(self.block_bytes), [order])
            else:
                written.append(order)
                ends = max(ends, self.writes.send(self.block_bytes) if isinstance(order, Demote) else now + RECORD_S)
        if written:
            self._finish_at(ends, written)
        if self._door is not None:
            self._settle_remote(self._door, now)
        for engine, slots in self.store.lends():
            self._lent[engine] += slots
        for engine, lease, answer in self.store.leases.answers():
            self.answered(engine, lease, answer)

    def _settle_remote(self, door: Door, now: float) -> None:
        for order in self.store.remote_transfers(now):
            if isinstance(order, Promote):
                when = door.read(self.block_bytes)
            elif isinstance(order, Demote):
                when = door.write(self.block_bytes)
            else:
                when = now + (door.remote.speed.latency_s if isinstance(order, Seek) else RECORD_S)
            self._clock.at(when, lambda order=order: self._remote_did(door.remote, order))  # type: ignore[misc]

    def _remote_did(self, remote: SharedRemote, order: Transfer) -> None:
        sizes: tuple[int, ...] = ()
        if isinstance(order, Demote):
            remote.blocks.add(order.key)
        elif isinstance(order, Seek):
            sizes = tuple(SLOT_UNIT if key in remote.blocks else 0 for key in unpack_keys(order.keys))
        self.store.remote_finished(Finished(order.ticket, sizes=sizes), self._clock.now)
        self.settle()

    def _finish_at(self, when: float, orders: list[Transfer]) -> None:
        def finish() -> None:
            for order in orders:
                self.store.finished(Finished(order.ticket), self._clock.now)
            self.settle()

        self._clock.at(when, finish)

    def _tick(self, every_s: float) -> None:
        """Time passes for sessions, as it does in the daemon."""
        self.store.retention.tick(self._clock.now)
        self.settle()
        self._clock.at(self._clock.now + every_s, lambda: self._tick(every_s))

    def _replan(self) -> None:
        self._replans = bool(self.store.leases.waiting())
        if self._replans:
            self.store.leases.replan(self._clock.now)
            self.settle()
            self._clock.at(self._clock.now + REPLAN_S, self._replan)


def whole_slabs(size: int) -> int:
    """The arena that holds the most nearly so many bytes: what is no whole slab is no use, and of these small arenas
    that could be a sixteenth."""
    nearest = max(SLAB_ALIGN, size // SLAB_ALIGN * SLAB_ALIGN)
    arenas = range(nearest, nearest + SLABS_MIN * SLAB_ALIGN + 1, SLAB_ALIGN)
    whole = (arena // slab_bytes_for(arena) * slab_bytes_for(arena) for arena in arenas)
    return min(whole, key=lambda held: abs(held - size))


def keys_of(blocks: Sequence[int]) -> bytes:
    return np.array([(block + 1, 0) for block in blocks], dtype="<u8").tobytes()


def parents_of(keys: bytes) -> bytes:
    """Of a prompt's blocks: the key of the one before, and nothing before the first."""
    return (bytes(KEY_BYTES) + keys)[: len(keys)]


def unpacked(keys: bytes) -> np.ndarray:
    """One element a key, to choose some of them."""
    return np.frombuffer(keys, f"V{KEY_BYTES}")
