"""The RAM tier: which blocks lie in the arena, what pins them there, and what goes when room is needed. Pure.

A slot is always in exactly one of these places, which the simulator checks after every step:

           take                keep                      drop, nothing pins it
    free ------> its taker's ------> placement (Index) --------------------------> free, or to be wiped
      ^              |                   | drop while pinned                        ^
      |--------------'                   '------> dropped, pinned ------------------'
           give                                             unpin

The takers are the engines (lent slots) and staging. What pins: leases, and writes to a lower tier. What was forgotten by
wish is wiped before its slot is free: overwritten with zeros, by whoever has the memory.

No block is here without the one before it, unless that is below, or is being saved: who evicts takes leaves (policy.py),
and who drops a block drops all behind it.

A slab of which slots are taken, or dropped and pinned, can't be cut to another size. Where a size needs it, it is
closing: it holds no placement, and a slot that would become free in it, or a placement in it, is shut instead. The slab
is whole again when all its slots are shut.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from kvtier.arena import Slots
from kvtier.block import ABSENT, NO_KEY, SLOT_UNIT, BlockKey
from kvtier.ghosts import Ghosts
from kvtier.index import Index, Table
from kvtier.policy import NONE, Policy, Ranking
from kvtier.stats import Stats


class Ram:
    def __init__(self, capacity: int, stats: Stats, ranking: Ranking, table: Table | None = None) -> None:
        self.now = 0.0  # whoever owns this says so
        self.ghosts = Ghosts()
        self.slots = Slots(capacity)
        self.index = Index(self.slots.units, table)
        self.policy = Policy(self.slots.units, self.slots.slab_units, ranking)
        self.on_give: Callable[[int], None] = lambda slot: None  # whoever has something by slot: it is nobody's now
        self.has_below: Callable[[BlockKey], bool] = lambda key: False  # whoever owns the tier below says so
        self.is_to_stay: Callable[[BlockKey], bool] = lambda key: False  # on this node; whoever knows of sessions says so
        # By slot:
        self.is_below = np.zeros(self.slots.units, dtype=bool)  # the tier below has the block too
        self.origin = np.zeros((self.slots.units, 2), dtype=np.uint64)  # tags of the session and the tenant that saved it
        self.stays = np.zeros(self.slots.units, dtype=bool)  # its session wants it on no disk
        self.stays_here = np.zeros(self.slots.units, dtype=bool)  # and on no other machine; also without the former
        self.to_wipe: list[tuple[int, int]] = []  # slots and bytes that are to be overwritten now
        self._stats = stats
        self._closing_for = 0  # the slot size that needs the closing slab
        self._pins_in_slab = np.zeros_like(self.slots.taken_in_slab)
        self._secret: set[int] = set()  # slots to be wiped when nobody uses them any more
        self._unwiped: set[int] = set()  # these, and those that are being wiped
        self._awaits: dict[int, BlockKey] = {}  # slot -> the block before it, which is not here
        self._awaited: dict[BlockKey, list[int]] = {}  # and the other way round

    @property
    def closing_for(self) -> int:
        """The slot size for which a slab is closing or was closed; 0: none."""
        return self._closing_for

    def slab_is_served(self) -> None:
        """Whoever needed the closed slab has had his turn."""
        if self.slots.closing is None:
            self._closing_for = 0

    def take_for(self, size: int, worth: float) -> int | None:
        """A slot of this size for a block that is worth so much, if there is one, or if what must go for it, of the same
        size, is worth less."""
        if not self.slots.has_free(size):
            victim = self._victim(size)
            if victim is None or self.policy.worth(victim) >= worth:
                return None
            self._evict(victim, "its room in RAM was needed for one that is expected sooner")
        return self.slots.take(size)

    def takes(self, size: int, whom: str) -> Iterator[int]:
        """Slots of this size, one after the other, evicting what must go for each. It ends when nothing more can go.
        `whom` they are for, is remembered of what goes."""
        cause = f"its room in RAM was needed {whom}"
        compares = True  # with other sizes: once is enough, it costs a look at every slab
        while True:
            slot = self.slots.take(size)
            if slot is not None:
                yield slot
            elif self._make_room(size, compares, cause):
                compares = False
            else:
                return

    def keep(
        self, slot: int, key: BlockKey, namespace: int, parent: BlockKey = b"", queue: int = 1, order: float | None = None
    ) -> bool:
        """A taken slot holds this block now; `parent` is the block before it, empty where there is none; `queue` and
        `order`: where it is to stand. False, and the slot is free: it is here already, or the slab is closing."""
        if key in self.index or self.slots.is_closing(slot):
            self.give(slot)
            return False
        before = int(self.index.find(parent)[0]) if parent else ABSENT
        self.index.add(key, slot, namespace)
        self.is_below[slot] = self.stays[slot] = False
        self.stays_here[slot] = self.is_to_stay(key)
        self.origin[slot] = 0
        behind = NONE if before == ABSENT else before
        self.policy.add(slot, self.slots.size_of(slot) // SLOT_UNIT, key, behind, queue, self.now, order)
        for child in self._awaited.pop(key, ()):
            del self._awaits[child]
            if self.policy.root(slot) != child:  # else a liar made a ring
                self.policy.attach(child, slot)
        if parent and before == ABSENT and parent != key:
            self._awaits[slot] = parent
            self._awaited.setdefault(parent, []).append(slot)
        return True

    def save(
        self, slots: list[int], keys: list[BlockKey], befores: list[BlockKey], namespace: int, queue: int, is_barred: bool
    ) -> list[int]:
        """An engine has filled these taken slots. Which of them, by their place in the list, hold a block now; the others
        are free. `befores`: the block before each, or NO_KEY. `is_barred`: nothing of it is wanted."""
        saved, known, refused = [], 0, 0
        size = self.slots.size_of(slots[0]) if slots else 0
        for i, (slot, key, before) in enumerate(zip(slots, keys, befores)):
            known += (is_known := key in self.index)
            parent = b"" if before == NO_KEY else before
            if is_barred or not (is_known or self.has_use_for(parent)):
                self.give(slot)
                refused += not is_known
            elif self.keep(slot, key, namespace, parent, queue):
                saved.append(i)
        new = len(keys) - known
        self._stats.add("saved_blocks", new)
        self._stats.add("saved_bytes", new * size)
        self._stats.add("known_blocks", known)
        self._stats.add("evicted_blocks", new - len(saved) - refused)
        self._stats.add("refused_forgotten" if is_barred else "refused_orphans", refused)
        return saved

    def give(self, slot: int) -> None:
        """A taken slot is free, or will be when it is wiped."""
        self.on_give(slot)
        if slot in self._secret:
            self._secret.discard(slot)
            self.to_wipe.append((slot, self.slots.size_of(slot)))
        else:
            self.slots.give(slot)

    def wiped(self, slot: int) -> None:
        self._unwiped.discard(slot)
        self.slots.give(slot)

    def wipe_later(self, slot: int) -> None:
        """What a taken slot holds is to be overwritten when it comes back."""
        self._secret.add(slot)
        self._unwiped.add(slot)

    def is_unwiped(self, slot: int) -> bool:
        """It is to be wiped, and isn't yet."""
        return slot in self._unwiped

    def use(self, slots: np.ndarray, queues: tuple[int, int] | None) -> None:
        """Used now. `queues`: where they are to stand, those that aren't below and those that are; None: where they
        are."""
        if queues is None:
            self.policy.use(slots, self.policy.queues(slots), self.now)
        else:
            self.policy.use(slots, np.where(self.is_below[slots], queues[1], queues[0]), self.now)

    def of_origin(self, session_tag: bytes, tenant_tag: bytes) -> list[int]:
        """Slots of blocks that this session, or this tenant, was the first to save; an empty tag matches all."""
        matches = self.origin.any(axis=1)
        for column, tag in enumerate((session_tag, tenant_tag)):
            if tag:
                matches &= self.origin[:, column] == np.frombuffer(tag, np.uint64)
        return [slot for slot in np.flatnonzero(matches).tolist() if self.index.holds(slot)]

    def find(self, keys: bytes, namespace: int, size: int) -> np.ndarray:
        """uint32[n]: the slot of each packed key; ABSENT where there is none. What lies there in another namespace, or has
        another size, somebody made up: to a reader of this many bytes it would show what lies beside it."""
        slots = self.index.find(keys)
        here = np.flatnonzero(slots != ABSENT)
        found = slots[here].astype(np.intp)
        sizes = self.slots.size_of_slab[found // self.slots.slab_units]
        slots[here[(sizes != size) | (self.index.namespaces(found) != namespace)]] = ABSENT
        return slots

    def has_use_for(self, parent: BlockKey) -> bool:
        """Whether a block behind this one may be kept: it has none before it, or that is here or below."""
        return not parent or parent in self.index or self.has_below(parent)

    def is_awaited(self, key: BlockKey) -> bool:
        """Something here stands behind it, and it isn't here."""
        return key in self._awaited

    def drop_namespace(self, namespace: int) -> int:
        """Forget its blocks; returns how many."""
        return self.drop(self.index.of_namespace(namespace).tolist())

    def drop(self, slots: Iterable[int], cause: str = "", is_secret: bool = False) -> int:
        """Forget these blocks and all behind them; returns how many. `is_secret`: they are wiped."""
        dropped = 0
        for slot in slots:
            for one in self.policy.subtree(slot) if self.index.holds(slot) else ():
                if is_secret:
                    self.wipe_later(one)
                if cause:
                    self.ghosts.add(self.index.key(one), cause)
                self._drop(one)
                dropped += 1
        return dropped

    def lost_below(self, keys: Iterable[BlockKey]) -> int:
        """These are below no more. What is here behind one of them that isn't here is of no use to anybody: it is
        dropped. Returns how many went."""
        dropped = 0
        for key in keys:
            slot = int(self.index.find(key)[0])
            if slot != ABSENT:
                self.note_below(slot, False)
            else:
                dropped += self.drop(list(self._awaited.get(key, ())), "what comes before it is gone")
        return dropped

    def note_below(self, slot: int, is_below: bool) -> None:
        """Whether the tier below has this block too."""
        if bool(self.is_below[slot]) != is_below:
            self.is_below[slot] = is_below
            self.policy.tell_below(slot, is_below)

    def pin(self, slots: np.ndarray) -> None:
        self.index.pin(slots)
        np.add.at(self._pins_in_slab, slots // self.slots.slab_units, 1)

    def unpin(self, slots: np.ndarray) -> None:
        np.subtract.at(self._pins_in_slab, slots // self.slots.slab_units, 1)
        for slot in self.index.unpin(slots):
            self.give(slot)
        self.policy.restore(slots)

    # --- how: what must go -------------------------------------------------------------------------------------

    def _make_room(self, size: int, compares: bool, cause: str) -> bool:
        """Whether a slot of this size can be taken now, for what was worth least has gone.

        That is a block of this size; or a whole slab of another size, when its blocks were used on the mean earlier than
        that, or there is no such block. The mean, because neither should one old block doom a slab of young ones, nor
        one young block save a slab of old ones. So each size has as many slabs as make its oldest blocks as old as
        those of the others.
        """
        own = self._victim(size)
        if (own is None or compares) and self._clear_slab(size, own, cause):
            return True
        if own is not None:
            self._evict(own, cause)
        return own is not None

    def _victim(self, size: int) -> int | None:
        """The block of this size that goes first, if one may."""
        return self.policy.victim(size // SLOT_UNIT, lambda slot: not self.index.is_pinned(slot), self.now)

    def _clear_slab(self, size: int, own: int | None, cause: str) -> bool:
        """Whether a slab of another size is whole now. If slots of the best one are taken or pinned it will be later:
        it is closed. Only one is closing at a time, for what its engines save there meanwhile is lost."""
        sizes = self.slots.size_of_slab
        slabs = np.flatnonzero((sizes != size) & (sizes != 0) & (self.policy.kept_in_slab == 0))
        held = self.slots.taken_in_slab - self.policy.blocks_in_slab + self._pins_in_slab
        means = self.policy.mean_stamps()
        if self.slots.closing is not None:
            slabs = slabs[held[slabs] == 0]
        if own is not None:
            slabs = slabs[means[slabs] < self.policy.stamp(own)]
        if not len(slabs):
            return False
        slab = int(slabs[np.lexsort((means[slabs], held[slabs]))[0]])  # the fewest held, the oldest of those
        if held[slab]:
            self.slots.close(slab)
            self._closing_for = size
        for slot in self.slots.slots_of(slab):
            if self.index.holds(slot):
                self._stats.add("evicted_blocks", self.drop([slot], cause))
        return not held[slab]

    def _evict(self, slot: int, cause: str) -> None:
        assert self.policy.is_leaf(slot)
        self.drop([slot], cause)
        self._stats.add("evicted_blocks")

    def _drop(self, slot: int) -> None:
        self.policy.remove(slot, self.index.key(slot))
        parent = self._awaits.pop(slot, None)
        if parent is not None:
            waiting = self._awaited[parent]
            waiting.remove(slot)
            if not waiting:
                del self._awaited[parent]
        if self.index.drop(slot):
            self.give(slot)
