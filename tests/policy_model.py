"""A policy of a few slots, a ranking that says what a test wants, and the same policy as a plain list with scans."""

import numpy as np

from kvtier.policy import KEPT, NONE, Policy
from kvtier.ranking import Lru

SIZE = 1  # of every slot, where it does not matter
UNITS, SLAB = 32, 8
NOW = 0.0


def key(slot: int) -> bytes:
    return slot.to_bytes(16, "big")


class Wanted:
    """A ranking that puts blocks where it is told, and says what queues are worth. Victims may get a second chance."""

    def __init__(self, refresh_s: float = float("inf")) -> None:
        self.refresh_s = refresh_s
        self.worths: dict[int, float] = {}
        self.chances: dict[int, int] = {}  # slot -> queue
        self.went: list[tuple[int, int]] = []

    def added(self, slot, key, wanted):
        return wanted

    def used(self, slots, wanted):
        return wanted

    def worth(self, queue, order, used_at, now):
        return self.worths.get(queue, float(queue))

    def again(self, slot, queue):
        return self.chances.pop(slot, 0)

    def below(self, queue, is_below):
        return queue + 100 if is_below and queue < 100 else queue - 100 if not is_below and queue > 100 else queue

    def gone(self, slot, key, queue):
        self.went.append((slot, queue))


def lru(*slots: int) -> Policy:
    return made(Lru(), *((slot, NONE, 1) for slot in slots))


def made(ranking, *blocks: tuple[int, int, int]) -> Policy:
    """Of (slot, parent, queue)."""
    policy = Policy(UNITS, SLAB, ranking)
    for slot, parent, queue in blocks:
        add(policy, slot, parent, queue)
    return policy


def add(policy: Policy, slot: int, parent: int = NONE, queue: int = 1, size: int = SIZE, order=None) -> None:
    policy.add(slot, size, key(slot), parent, queue, NOW, order)


def anything(slot: int) -> bool:
    return True


def victim(policy: Policy, size: int = SIZE, acceptable=anything) -> int | None:
    return policy.victim(size, acceptable, NOW)


def take_all(policy: Policy, size: int = SIZE) -> list[int]:
    """Every slot, the first to go first."""
    taken = []
    while (slot := victim(policy, size)) is not None:
        policy.remove(slot, key(slot))
        taken.append(slot)
    return taken


def use(policy: Policy, *slots: int, queue: int | list[int] = 1) -> None:
    policy.use(array(*slots), queue if isinstance(queue, int) else np.array(queue), NOW)


def array(*slots: int) -> np.ndarray:
    return np.array(slots, dtype=np.intp)


class Model:
    """The same as lists of blocks: a scan for everything."""

    def __init__(self) -> None:
        self.uses = 0
        self.blocks: dict[int, dict] = {}

    def leaves(self) -> set[int]:
        return set(self.blocks) - {block["parent"] for block in self.blocks.values()}

    def ancestors(self, slot: int) -> set[int]:
        found = set()
        while slot != NONE:
            found.add(slot)
            slot = self.blocks[slot]["parent"]
        return found

    def least(self, refused: set[int], worth) -> list[int]:
        """Who may go next: the firsts of queues worth least. Who is refused is put aside when it is his turn."""
        standing = [slot for slot in self.leaves() if self.blocks[slot]["queue"] != KEPT]
        possible: list[int] = []
        while True:
            firsts: dict[int, int] = {}
            for slot in standing:
                queue = self.blocks[slot]["queue"]
                if queue not in firsts or self.place(slot) < self.place(firsts[queue]):
                    firsts[queue] = slot
            worths = {slot: worth(queue, self.blocks[slot]["order"]) for queue, slot in firsts.items()}
            least = {slot for slot in worths if worths[slot] == min(worths.values())}
            possible += least - refused
            if not least & refused:
                return possible
            standing = [slot for slot in standing if slot not in least & refused]

    def place(self, slot: int) -> tuple[float, int]:
        return self.blocks[slot]["order"], slot


class Hilly(Wanted):
    """Worths that go up and down along a queue, as those of sessions do."""

    def __init__(self) -> None:
        super().__init__(refresh_s=0.0)

    def worth(self, queue, order, used_at, now):
        return float((queue * 7 + order * 3) % 11)


def play(policy: Policy, model: Model, event: tuple, refused: set[int]) -> None:
    what, first, *rest = event
    if what == "add" and first not in model.blocks:
        parents, queue, order = rest
        parent = next((slot for slot in parents if slot in model.blocks), NONE)
        add(policy, first, parent, queue, order=order)
        model.uses += 1
        model.blocks[first] = {
            "parent": parent, "queue": queue, "stamp": model.uses, "order": model.uses if order is None else order
        }  # fmt: skip
    elif what == "use":
        slots = [slot for slot in first if slot in model.blocks]
        use(policy, *slots, queue=rest[0] or 1)
        model.uses += len(slots)
        for back, slot in enumerate(slots):
            block = model.blocks[slot]
            block["stamp"] = model.uses - back
            if block["queue"] != KEPT:
                block["queue"], block["order"] = rest[0] or 1, block["stamp"]
    elif what == "move":
        slots = [slot for slot in first if slot in model.blocks]
        policy.move(array(*slots), rest[0], rest[1])
        for slot in slots:
            block = model.blocks[slot]
            block["queue"], block["order"] = rest[0], block["stamp"] if rest[1] is None else rest[1]
    elif what == "swap" and first in model.blocks and model.blocks[first]["queue"] != KEPT:
        policy.swap(first, rest[0])
        model.blocks[first]["queue"] = rest[0]
    elif what == "attach" and {first, rest[0]} <= set(model.blocks) and model.blocks[first]["parent"] == NONE:
        if first not in model.ancestors(rest[0]):
            policy.attach(first, rest[0])
            model.blocks[first]["parent"] = rest[0]
    elif what == "remove" and first in model.blocks:
        drop(policy, model, first)
    elif what == "evict":
        refused |= first & set(model.blocks)
        slot = victim(policy, acceptable=lambda slot: slot not in refused)
        possible = model.least(refused, lambda queue, order: policy.ranking.worth(queue, order, NOW, NOW))
        assert slot in possible if possible else slot is None
        if slot is not None:
            drop(policy, model, slot)
        policy.restore(array(*refused))
        refused.clear()


def drop(policy: Policy, model: Model, slot: int) -> None:
    policy.remove(slot, key(slot))
    del model.blocks[slot]
    for block in model.blocks.values():
        if block["parent"] == slot:
            block["parent"] = NONE


def check_columns(policy: Policy, model: Model) -> None:
    stamps, blocks, kept = (np.zeros(UNITS // SLAB, dtype=np.int64) for _ in range(3))
    for slot, block in model.blocks.items():
        stamps[slot // SLAB] += block["stamp"]
        blocks[slot // SLAB] += 1
        kept[slot // SLAB] += block["queue"] == KEPT
        assert policy.queues(array(slot))[0] == block["queue"] and policy._parent[slot] == block["parent"]
    assert policy.blocks_in_slab.tolist() == blocks.tolist()
    assert policy.kept_in_slab.tolist() == kept.tolist()
    with np.errstate(invalid="ignore", divide="ignore"):
        assert policy.mean_stamps().tolist() == np.where(blocks, stamps / blocks, np.inf).tolist()
