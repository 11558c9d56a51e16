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

Whose blocks they are, and what that means for room: tenants.py, charging.py. What a slot holds of those who had it before:
residue.py.

A slab of which slots are taken, or dropped and pinned, can't be cut to another size. Where a size needs it, it is
closing: it holds no placement, and a slot that would become free in it, or a placement in it, is shut instead. The slab
is whole again when all its slots are shut.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from kvtier.arena import Slots
from kvtier.block import ABSENT, NO_KEY, SLOT_UNIT, BlockKey
from kvtier.charging import Charging
from kvtier.ghosts import Ghosts
from kvtier.index import Index, Table
from kvtier.policy import NONE, Policy, Ranking
from kvtier.residue import Residue
from kvtier.stats import Stats
from kvtier.tenants import NOBODY, Tenants


class Ram:
    def __init__(self, capacity: int, stats: Stats, ranking: Ranking, table: Table | None = None) -> None:
        self.now = 0.0  # whoever owns this says so
        self.ghosts = Ghosts()
        self.slots = Slots(capacity)
        self.index = Index(self.slots.units, table)
        self.policy = Policy(self.slots.units, self.slots.slab_units, ranking)
        self.tenants = Tenants(self.slots.units, capacity)
        self.charging = Charging(self.tenants, self.policy, self._may_go, self._evict_own)
        self.residue = Residue(self.slots.units, self.slots.slab_units, self.slots.cuts)
        self.on_give: Callable[[int], None] = lambda slot: None  # whoever has something by slot: it is nobody's now
        self.has_below: Callable[[BlockKey], bool] = lambda key: False  # whoever owns the tier below says so
        self.is_to_stay: Callable[[BlockKey], bool] = lambda key: False  # on this node; whoever knows of sessions says so
        # By slot:
        self.is_below = np.zeros(self.slots.units, dtype=bool)  # the tier below has the block too
        self.origin = np.zeros((self.slots.units, 2), dtype=np.uint64)  # tags of the session and the tenant that saved it
        self.stays = np.zeros(self.slots.units, dtype=bool)  # its session wants it on no disk
        self.stays_here = np.zeros(self.slots.units, dtype=bool)  # and on no other machine; also without the former
        self.zero: Callable[[int, int], None] = lambda at, n: None  # so many bytes of the arena; whoever has the memory
        self.to_wipe: list[tuple[int, int]] = []  # slots and bytes that are to be overwritten now
        self._stats = stats
        self._closing_for = 0  # the slot size that needs the closing slab
        self._pins_in_slab = np.zeros_like(self.slots.taken_in_slab)
        self._secret: set[int] = set()  # slots to be wiped when nobody uses them any more
        self._unwiped: set[int] = set()  # these, and those that are being wiped
        self._changing_hands: set[int] = set()  # of them, those that are to be another user's
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

    def takes(
        self, size: int, whom: str, user: int | None = None, at_most: int = 1, owed: deque[int] | None = None
    ) -> Iterator[int]:
        """Slots of this size, one after the other, evicting what must go for each. It ends when nothing more can go.
        `whom` they are for, is remembered of what goes. For an engine that may write there at once also: its `user`, of
        whom alone there are bytes in them (what has those of another is zeroed first, and is free then; `at_most` so many
        slots at one time); `owed`: the tenants whose saves took the slots that these replace, taken from as slots are."""
        cause = f"its room in RAM was needed {whom}"
        compares = True  # with other sizes: once is enough, it costs a look at every slab
        is_waiting, to_come = bool(self._changing_hands), 0
        while True:
            slot = self.slots.take(size, self.residue.best(size) if user is not None else None)
            if slot is not None and user is not None and self.residue.is_foreign(slot, size, user):
                self._changing_hands.add(slot)
                self.wipe_later(slot)
                self.give(slot)
                to_come += 1
            elif slot is not None:
                if owed:
                    owed.popleft()
                yield slot
                continue
            if to_come >= at_most or (user is not None and is_waiting):
                return
            if slot is None:
                if not self._make_room(size, compares, cause, owed[0] if owed else NOBODY):
                    return
                compares = False

    def lent(self, slot: int, size: int, user: int, block_bytes: int) -> None:
        """This user's engine may write a block of so many bytes there from now on."""
        self.residue.lent(slot, size, user)
        at, n = self.residue.tail(slot, size, block_bytes)
        if n:
            self.zero(at, n)

    def keep(
        self,
        slot: int,
        key: BlockKey,
        namespace: int,
        parent: BlockKey = b"",
        queue: int = 1,
        order: float | None = None,
        tenant: int = 0,
        before: int | None = None,
    ) -> bool:
        """A taken slot holds this block now, behind `parent`, empty where there is none, in slot `before`, if one knows;
        `queue` and `order`: where it is to stand; `tenant`: the number of whose it is. False, and the slot is free: it is
        here already, or the slab is closing."""
        if key in self.index or self.slots.is_closing(slot):
            self.give(slot)
            return False
        size = self.slots.size_of(slot)
        self.tenants.add(slot, tenant, size)
        self.residue.filled(slot, size, namespace)
        if before is None:
            before = int(self.index.find(parent)[0]) if parent else ABSENT
        self.index.add(key, slot, namespace)
        self.is_below[slot] = self.stays[slot] = False
        self.stays_here[slot] = self.is_to_stay(key)
        self.origin[slot] = 0
        self.policy.add(slot, size // SLOT_UNIT, key, NONE if before == ABSENT else before, queue, self.now, order)
        for child in self._awaited.pop(key, ()):
            del self._awaits[child]
            if self.policy.root(slot) != child:  # else a liar made a ring
                self.policy.attach(child, slot)
        if parent and before == ABSENT and parent != key:
            self._awaits[slot] = parent
            self._awaited.setdefault(parent, []).append(slot)
        return True

    def save(
        self,
        slots: list[int],
        keys: list[BlockKey],
        befores: list[BlockKey],
        namespace: int,
        queue: int,
        is_barred: bool,
        tenant: int = 0,
    ) -> list[int]:
        """An engine has filled these taken slots. Which of them, by their place in the list, hold a block now; the others
        are free. `befores`: the block before each, or NO_KEY. `is_barred`: nothing of it is wanted. `tenant`: the number of
        whose they are."""
        saved, known, refused, over_quota, last = [], 0, 0, 0, (NO_KEY, ABSENT)
        size, is_limited = self.slots.size_of(slots[0]) if slots else 0, self.tenants.is_limited
        for i, (slot, key, before) in enumerate(zip(slots, keys, befores)):
            known += (is_known := key in self.index)
            parent = b"" if before == NO_KEY else before
            if is_barred or not (is_known or self.has_use_for(parent)):
                self.give(slot)
                refused += not is_known
            elif is_limited and not is_known and not self.makes_own_room(tenant, size, parent):
                self.give(slot)
                over_quota += 1
            elif self.keep(slot, key, namespace, parent, queue, None, tenant, last[1] if last[0] == parent else None):
                saved.append(i)
                last = key, slot  # the next one stands behind it, mostly
        new = len(keys) - known
        self._stats.add("saved_blocks", new)
        self._stats.add("saved_bytes", new * size)
        self._stats.add("known_blocks", known)
        self._stats.add("evicted_blocks", new - len(saved) - refused - over_quota)
        self._stats.add("refused_forgotten" if is_barred else "refused_orphans", refused)
        self._stats.add("refused_quota", over_quota)
        # One may have gone for the next
        return [i for i in saved if not is_limited or int(self.index.find(keys[i])[0]) == slots[i]]

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
        size = self.slots.size_of(slot)
        self.residue.wiped(slot, size)
        if slot in self._changing_hands:
            self._changing_hands.discard(slot)
            self.residue.zeroed(slot, size)
        self.slots.give(slot)

    def wipe_later(self, slot: int) -> None:
        """What a taken slot holds is to be overwritten when it comes back."""
        self._secret.add(slot)
        self._unwiped.add(slot)

    def is_unwiped(self, slot: int) -> bool:
        """It is to be wiped, and isn't yet."""
        return slot in self._unwiped

    def own(self, slots: np.ndarray, origin: bytes) -> None:
        """These blocks are of this origin: the tags of a session and of a tenant. If that one has more than its quota now,
        blocks of it go."""
        if not len(slots):
            return
        self.origin[slots] = np.frombuffer(origin, np.uint64)
        number = self.tenants.number(int(self.origin[slots[0], 1]))
        for slot in self.tenants.others(slots, number).tolist():
            size = self.slots.size_of(slot)
            self.tenants.remove(slot, size)
            self.tenants.add(slot, number, size)
        self.makes_own_room(number, self.slots.size_of(int(slots[0])), b"", more=0)

    def makes_own_room(self, tenant: int, size: int, parent: BlockKey, more: int = 1) -> bool:
        """Whether this tenant may have `more` blocks of this size, after what must go of its own has gone; not `parent`,
        the block that they stand behind."""
        if self.tenants.has_room(tenant, more * size, more):
            return True
        sizes = [size, *set(self.slots.size_of_slab.tolist()) - {0, size}]
        before = int(self.index.find(parent)[0]) if parent else NONE
        return self.charging.makes_room(tenant, sizes, more, before, self.now)

    def shed(self) -> None:
        """What tenants have above their quotas goes, where something kept it there until now."""
        for number in self.tenants.over().tolist():
            self.makes_own_room(number, SLOT_UNIT, b"", more=0)

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
        keys = list(keys)
        slots = self.index.find(b"".join(keys))
        for slot in slots[slots != ABSENT].tolist():
            self.note_below(slot, False)
        lost = (keys[at] for at in np.flatnonzero(slots == ABSENT).tolist())
        awaited = [list(self._awaited[key]) for key in lost if key in self._awaited]
        return sum(self.drop(slots_behind, "what comes before it is gone") for slots_behind in awaited)

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

    def _make_room(self, size: int, compares: bool, cause: str, payer: int = NOBODY) -> bool:
        """Whether a slot of this size can be taken now, for what was worth least has gone.

        That is a block of this size; or a whole slab of another size, when its blocks were used on the mean earlier than
        that, or there is no such block. The mean, because neither should one old block doom a slab of young ones, nor
        one young block save a slab of old ones. So each size has as many slabs as make its oldest blocks as old as
        those of the others.
        """
        own = self._victim(size)
        if (own is None or compares) and self._clear_slab(size, own, cause):
            return True
        if own is None:
            return False
        if not self.charging.is_paid(payer, own, size, cause, self.now):
            self._evict(own, cause)
        return True

    def _victim(self, size: int) -> int | None:
        """The block of this size that goes first, if one may."""
        return self.policy.victim(size // SLOT_UNIT, self._may_go, self.now)

    def _may_go(self, slot: int) -> bool:
        return not self.index.is_pinned(slot)

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

    def _evict_own(self, slot: int, cause: str) -> None:
        """For others of its tenant."""
        self._evict(slot, cause)
        self._stats.add("evicted_own_blocks")

    def _evict(self, slot: int, cause: str) -> None:
        assert self.policy.is_leaf(slot)
        self.drop([slot], cause)
        self._stats.add("evicted_blocks")

    def _drop(self, slot: int) -> None:
        self.tenants.remove(slot, self.slots.size_of(slot))
        self.policy.remove(slot, self.index.key(slot))
        parent = self._awaits.pop(slot, None)
        if parent is not None:
            waiting = self._awaited[parent]
            waiting.remove(slot)
            if not waiting:
                del self._awaited[parent]
        if self.index.drop(slot):
            self.give(slot)
