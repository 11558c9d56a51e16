"""Retention after any events: what must be true of blocks and sessions at all times, whatever clients say."""

from hashlib import blake2b

from hypothesis import given, settings
from hypothesis import strategies as st
from idle_world import BLOCK, ENGINE, OTHER_TENANT, RED, TENANT, World, keys, letters

from kvtier.block import KEY_BYTES
from kvtier.forgetting import session_tag
from kvtier.rankings import POLICIES
from kvtier.transfer import Transfer

# One family of chains a tenant: salted requests share no keys. The second letter parts, so do the third and so on.
FAMILIES = {b"": "abcdefgh", TENANT: "ijklmnop", OTHER_TENANT: "qrstuvwx"}
NAMES = ["", "chat", "work"]
HINTS = st.fixed_dictionaries(
    {"session": st.sampled_from(NAMES), "tenant": st.sampled_from(sorted(FAMILIES))},
    optional={
        "tool": st.sampled_from(["search", "shell"]),
        "end": st.booleans(),
        "pin": st.booleans(),
        "no_disk": st.booleans(),
        "ttl_s": st.floats(0.5, 30.0),
        "expect_return_s": st.floats(0.1, 60.0),
    },
)
ROADS = st.lists(st.booleans(), max_size=4)  # where the chain takes the other of two letters
EVENTS = st.lists(
    st.tuples(st.just("ask"), HINTS, ROADS)
    | st.tuples(st.just("save"), st.integers(0, 9), st.integers(0, 4))
    | st.tuples(st.just("over"), st.integers(0, 9), st.booleans())
    | st.tuples(st.just("wait"), st.floats(0.01, 40.0), st.none())
    | st.tuples(st.sampled_from(["start", "finish", "run"]), st.sampled_from(["", "", "io", "corrupt"]), st.none())
    | st.tuples(st.sampled_from(["end", "park", "warm", "pin", "unpin"]), st.sampled_from(NAMES[1:]), st.none())
    | st.tuples(st.just("forget"), st.sampled_from(NAMES), st.sampled_from(["", TENANT[:6].hex(), OTHER_TENANT[:6].hex()]))
    | st.tuples(st.just("evict"), st.integers(1, 6), st.none())
    | st.tuples(st.sampled_from(["reset", "leave"]), st.none(), st.none()),
    max_size=40,
)


def chain(tenant: bytes, road: list[bool]) -> str:
    """Letters that stand for their whole prefix: the path through a tree."""
    return "".join(FAMILIES[tenant][0] + str(2 ** (n + 1) + sum(2**i for i, turn in enumerate(road[:n]) if turn)) + "."
                   for n in range(len(road) + 1))  # fmt: skip


def behind(block: str, n: int) -> str:
    """One of the blocks that may be generated behind this one."""
    return block[0] + blake2b(f"{block}{n}".encode(), digest_size=6).hexdigest() + "."


def blocks(path: str) -> list[str]:
    return [part + "." for part in path.split(".") if part]


class Life:
    """A world in which transfers take their time, and requests run side by side."""

    def __init__(self, policy: str) -> None:
        self.world = World(drives=True, policy=policy)
        self.pending: list[Transfer] = []
        self.running: dict[str, list[str]] = {}  # request -> its blocks
        self.tickets: dict[int, tuple[str, str, set[str]]] = {}  # and what others had then, or saved since
        self.under_way: dict[int, set[str]] = {}  # requests of then, by ticket
        self.wiping: list[int] = []
        self.leases = 0
        self.parents: dict[str, str] = {}
        self.no_disk: set[str] = set()  # blocks that were saved last for a session that wants it so

    def ask(self, hints: dict, road: list[bool]) -> None:
        self.leases += 1
        request = f"r{self.leases}"
        self.running[request] = blocks(chain(hints["tenant"], road))
        for before, block in zip(self.running[request], self.running[request][1:]):
            self.parents[block] = before
        self.world.now += 0.01
        self.world.begin(request, **hints)
        self.world.look_up(request, self.running[request], self.leases)

    def save(self, which: int, more: int) -> None:
        if self.running:
            request = sorted(self.running)[which % len(self.running)]
            has = self.running[request]
            for n in range(more):
                has.append(behind(has[-1], n))
                self.parents[has[-1]] = has[-2]
            new = [block for block in has if not self.world.is_here(block)]
            self.world.save(request, has)
            for ticket, (_, _, kept) in self.tickets.items():
                if request not in self.under_way[ticket]:
                    kept.update(block for block in new if self.world.is_here(block))
            session = self.world.store.retention._sessions.of_request(ENGINE, request)
            change = self.no_disk.update if session is not None and session.no_disk else self.no_disk.difference_update
            change(block for block in new if self.world.is_here(block))

    def over(self, which: int, is_known: bool) -> None:
        if self.running:
            request = sorted(self.running)[which % len(self.running)]
            self.world.over(request, self.running.pop(request) if is_known else [])

    def step(self, what: str, first, second) -> None:
        world, retention = self.world, self.world.store.retention
        if what in ("ask", "save", "over"):
            getattr(self, what)(first, second)
        elif what == "wait":
            world.now += first
            world.store.tick(world.now)
        elif what == "start":
            self.pending += world.start()
            self.wiping += [slot for slot, _ in world.store.wipes()]
        elif what == "finish":
            orders, self.pending = self.pending[:2], self.pending[2:]
            world.finish(orders, first)
            for slot in self.wiping:
                world.store.wiped(slot)
            self.wiping.clear()
        elif what == "run":
            self.quiet()
        elif what in ("pin", "unpin"):
            retention.pin(first, 10.0 if what == "pin" else 0.0, world.now)
        elif what in ("end", "park", "warm"):
            getattr(retention, what)(first, world.now)
        elif what == "forget":
            ticket = retention.forget(first, second, world.now)
            self.tickets[ticket] = first, second, self.having()
            self.under_way[ticket] = set(self.running)
        elif what == "evict":
            world.evict(first)
        elif what == "reset":
            world.store.reset(ENGINE, RED)
        elif what == "leave":
            world.store.leave(ENGINE, world.now)
            self.running.clear()
            world.join()

    def quiet(self) -> None:
        """All that is under way finishes."""
        for slot in self.wiping:
            self.world.store.wiped(slot)
        self.wiping.clear()
        self.world.finish(self.pending)
        self.pending.clear()
        self.world.run()

    # --- what must be true ---------------------------------------------------------------------------------------

    def check(self) -> None:
        ram, retention = self.world.store.ram, self.world.store.retention
        sessions = list(retention._sessions)
        in_ram = {name(ram.index.key(slot)): slot for slot in range(ram.slots.units) if ram.index.holds(slot)}
        for block in in_ram:
            before = self.parents.get(block)
            assert before is None or before in in_ram or self.world.is_below(before) or self.is_coming(before), block
        kept = {block for block, slot in in_ram.items() if not ram.policy.queues([slot])[0]}
        assert kept == {block for session in sessions for block in names(session.pinned)}
        assert retention.pins.bytes == len(kept) * BLOCK <= retention.pins.bytes_max
        assert all(ram.stays[in_ram[block]] or self.world.is_below(block) for block in self.no_disk & set(in_ram))
        for ticket, proof in retention.forgotten():
            self.gone(*self.tickets.pop(ticket), proof)

    def having(self) -> set[str]:
        """What sessions have, and what their requests have saved."""
        sessions = list(self.world.store.retention._sessions)
        saved = [part for session in sessions for parts in session.requests.values() for part in parts]
        return {block for packed in (*(session.keys for session in sessions), *saved) for block in names(packed)}

    def is_coming(self, block: str) -> bool:
        store = self.world.store
        lower = store.lower
        return lower.demotions.is_writing(keys([block])) or any(block in has for has in self.running.values())

    def gone(self, session: str, tenant: str, kept: set[str], proof: dict) -> None:
        """Nothing of it is anywhere, but what others had, or came since."""
        ram, lower, kept = self.world.store.ram, self.world.store.lower, kept | self.having()
        assert proof["bytes_zeroed"] == {tier: n * BLOCK for tier, n in proof["blocks"].items()}
        tags = session_tag(session), bytes.fromhex(tenant).ljust(8, b"\0") if tenant else b""
        if session or tenant:
            assert all(name(ram.index.key(slot)) in kept for slot in ram.of_origin(*tags))
            places, extents = lower.of_origin(*tags), lower.extents
            is_left = kept or self.tickets  # what came since may have been forgotten by another ticket
            assert all(name(extents.key(at)) in kept if extents.holds(at) else is_left for at in places)
            assert all(name(key) in kept or self.tickets for key in lower.moving_of_origin(*tags))


def name(key: bytes) -> str:
    return letters(key)


def names(packed: bytes) -> list[str]:
    return [letters(packed[at : at + KEY_BYTES]) for at in range(0, len(packed), KEY_BYTES)]


@given(EVENTS, st.sampled_from([*POLICIES, "value", "value"]))
@settings(max_examples=300, deadline=None)
def test_whatever_comes_blocks_and_sessions_are_what_they_must_be(events, policy):
    life = Life(policy)
    for event in events:
        life.step(*event)
        life.check()
    life.quiet()
    while life.running:
        life.over(0, True)
    life.quiet()
    life.check()
    assert not life.tickets, "every ticket is through when nothing is under way"
    world = life.world
    if policy == "value":
        had = "".join(letters(session.keys) for session in world.store.retention._sessions)
        here = [block for block in life.parents if world.is_here(block) and block in had]
        assert "active" not in world.kinds(here)
    for session in list(world.store.retention._sessions):
        world.store.retention.end(session.shown_name, world.now)
    world.evict(64)
    assert len(world.store.ram.index) == 0 and len(world.store.retention._sessions.lineage) == 0
    assert world.store.ram.slots.taken_bytes == world.store.lending.lent_bytes
