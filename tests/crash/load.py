"""A mixed load against a daemon that may die at any moment: saves, lookups, releases, flushes, now and then a reset.

Each round picks one of them for one of two engines. Whoever calls hears of the daemon's death by a `Gone`.
"""

import itertools
import random
import select
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from arena_bytes import ArenaBytes
from kvtierd import KVTierd, Peer, observer_hello, scheduler_hello
from oracle import Model, Oracle, Promise

from kvtier import protocol
from kvtier.block import ABSENT, BELOW, block_key, pack_keys, pack_slots, unpack_slots

NAMES = itertools.count()
BATCH = 24  # blocks of a lookup
LEND = 16  # slots
LOST_UNWRITTEN = ("unwritten_blocks", "refused_queue", "refused_budget", "refused_first_use")


class Gone(Exception):
    """The daemon hung up or can't be connected to."""


@contextmanager
def expecting_death() -> Iterator[None]:
    """Turns every way in which a peer notices the daemon's death into Gone."""
    try:
        yield
    except (ConnectionError, FileNotFoundError) as error:
        raise Gone from error
    except AssertionError as error:
        if "hung up" in str(error):
            raise Gone from error
        raise


class Talker:
    """An engine with one worker, whose blocks are of real bytes."""

    def __init__(self, daemon: KVTierd, model: Model, oracle: Oracle) -> None:
        name = f"engine {next(NAMES)}"
        self.model, self._oracle = model, oracle
        hello = scheduler_hello(name, model.name, model.size, LEND)
        self.peer = Peer(daemon.socket)
        # No chain: each block is asked for its own sake.
        self.secret = self.peer.ask(replace(hello, is_chain=0), answer=protocol.Welcome).secret
        self._lent: list[int] = []
        self.arena = ArenaBytes(daemon, name)
        self._lease = 0
        self.open: dict[int, list[bytes]] = {}  # lookups that were not answered yet
        self.must_find = False  # what is safe and not offered counts as lost

    def close(self) -> None:
        self.peer.close()
        self.arena.close()

    def hear(self, kind: Any) -> protocol.Message:
        """The next of this kind; what comes before it is taken in."""
        while True:
            message = self.peer.hear_any()
            if message is None:
                raise Gone
            assert not isinstance(message, protocol.Error), message
            if isinstance(message, protocol.Lend):
                self._lent += unpack_slots(message.slots).tolist()
            elif isinstance(message, protocol.Found) and message.lease in self.open:
                self._found(message)
            if isinstance(message, kind):
                return message

    def barrier(self) -> dict:
        """All that was said before has been done; the daemon's state."""
        self.peer.say(protocol.Ask())
        return self.hear(protocol.Snapshot).state

    def present(self) -> set[bytes]:
        """What was saved and isn't safe yet, as far as the daemon has it now."""
        self.hear_answers()
        keys = sorted(self.model.saved - self.model.safe)
        here: set[bytes] = set()
        for i in range(0, len(keys), BATCH):
            some = keys[i : i + BATCH]
            here |= {key for key, slot in zip(some, self.where(some), strict=True) if slot != ABSENT}
        return here

    def where(self, keys: list[bytes]) -> list[int]:
        """The slot of each as it is now, nothing is staged for it."""
        self._lease += 1
        self.peer.say(protocol.Lookup(self._lease, pack_keys(keys), len(keys)))
        while (found := self.hear(protocol.Found)).lease != self._lease:
            pass  # one that it gave up, and the answer was on its way
        self.peer.say(protocol.Release(self._lease, 0))
        return unpack_slots(found.slots).tolist()

    def save_new(self, n: int) -> None:
        first, self.model.made = self.model.made, self.model.made + n
        self.save([block_key(self.model.secret, b"%d" % i) for i in range(first, first + n)])

    def save(self, keys: list[bytes]) -> None:
        for key in keys:
            while not self._lent:
                self.hear(protocol.Lend)
            slot = self._lent.pop(0)
            self.arena.write(slot, self.model.content(key))
            self.model.saved.add(key)
            self.peer.say(protocol.Commit(key, pack_slots([slot])))

    def ask(self, keys: list[bytes]) -> None:
        """A lookup; its answer is judged when it comes."""
        self._lease += 1
        self.open[self._lease] = keys
        self.peer.say(protocol.Lookup(self._lease, pack_keys(keys)))

    def give_up(self) -> None:
        """Releases what it asked last, answered or not."""
        if self.open.pop(self._lease, None):
            self.peer.say(protocol.Release(self._lease, 0))

    def hear_answers(self) -> None:
        while self.open:
            self.hear(protocol.Found)

    def hear_what_is_there(self) -> None:
        """Doesn't wait."""
        while select.select([self.peer.sock], [], [], 0)[0]:
            self.hear(protocol.Message)

    @property
    def has_slots(self) -> bool:
        return bool(self._lent)

    def _found(self, found: protocol.Found) -> None:
        keys = self.open.pop(found.lease)
        for key, slot in zip(keys, unpack_slots(found.slots).tolist(), strict=True):
            if slot < BELOW:
                content = self.arena.read(slot, self.model.size)
                self._oracle.judge(self.model, key, content)
            elif self.must_find:
                self._oracle.missed(self.model, key)
        self.peer.say(protocol.Release(found.lease, len(keys)))

    def reset(self) -> None:
        """Nothing saved so far counts."""
        self.hear_answers()
        self.model.reset_all()
        self.peer.say(protocol.Reset())
        self.barrier()

    def touch(self, keys: list[bytes]) -> None:
        self.peer.say(protocol.Touch(pack_keys(keys)))


class Load:
    """Two engines at one daemon, and an observer that flushes."""

    def __init__(self, daemon: KVTierd, oracle: Oracle, chance: random.Random) -> None:
        self._daemon, self._oracle, self._chance = daemon, oracle, chance
        self.talkers: list[Talker] = []
        self._observer: Peer | None = None
        self._promise: Promise | None = None  # of the flush that is under way
        self._unwritten = 0

    def __enter__(self) -> "Load":
        try:
            with expecting_death():
                self._observer = Peer(self._daemon.socket)
                self._observer.ask(observer_hello(), answer=protocol.Welcome)
                for model in self._oracle.models.values():
                    self._join(model)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for peer in (*self.talkers, self._observer):
            if peer is not None:
                peer.close()

    def _join(self, model: Model) -> None:
        talker = Talker(self._daemon, model, self._oracle)
        self.talkers.append(talker)
        secret = talker.secret
        if model.is_secret_safe:
            assert secret == model.secret, "the same engine finds its blocks under other keys"
        elif secret != model.secret and model.secret:
            model.saved, model.safe, model.doubtful = set(), set(), set()  # a crash undid a reset, or lost the first join
        model.secret = secret

    # --- after a restart ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """Everything that was ever saved is asked for; what must be there is there, what must not isn't."""
        with expecting_death():
            for talker in self.talkers:
                model = talker.model
                keys = sorted(model.safe) + self._some(sorted(model.doubtful), 4 * BATCH)
                keys += self._some(sorted(model.reset), BATCH)
                talker.must_find = True
                for i in range(0, len(keys), BATCH):
                    talker.ask(keys[i : i + BATCH])
                    talker.hear_answers()
                talker.must_find = False

    def _some(self, keys: list[bytes], n: int) -> list[bytes]:
        return self._chance.sample(keys, min(n, len(keys)))

    # --- rounds --------------------------------------------------------------------------------------------------

    def round(self) -> None:
        """One of the things that engines do. Gone: the daemon is dead."""
        with expecting_death():
            talker = self._chance.choice(self.talkers)
            deed = self._chance.choices(
                (self._save, self._look_up, self._look_up_and_leave, self._touch, self._flush, self._reset),
                (40, 30, 8, 8, 8, 0.2),
            )[0]
            deed(talker)
            if self._chance.random() < 0.5:
                talker.hear_answers()

    def _save(self, talker: Talker) -> None:
        n = self._chance.randint(1, 12)
        if self._oracle.is_full:
            self._reset(talker)
        elif self._chance.random() < 0.9:
            talker.save_new(n)
        else:
            talker.save(self._some(sorted(talker.model.saved), n))

    def _known(self, talker: Talker) -> list[bytes]:
        return self._some(sorted(talker.model.saved), self._chance.randint(1, BATCH)) + self._some(
            sorted(talker.model.reset | talker.model.resetting), 2
        )

    def _look_up(self, talker: Talker) -> None:
        if keys := self._known(talker):
            talker.ask(keys)

    def _look_up_and_leave(self, talker: Talker) -> None:
        self._look_up(talker)
        talker.give_up()

    def _touch(self, talker: Talker) -> None:
        talker.touch(self._known(talker))

    def _flush(self, _: Talker) -> None:
        """Ends the one that is under way, and begins another."""
        assert self._observer is not None
        self.end_flush()
        here = {talker.model.name: talker.present() for talker in self.talkers}
        self._unwritten = self._count_unwritten()
        self._promise = self._oracle.promise(here)
        self._observer.say(protocol.Flush())

    def end_flush(self) -> None:
        """Waits for the answer of the flush that is under way, and believes it."""
        if self._promise is None:
            return
        assert self._observer is not None
        durable = self._observer.hear(protocol.Flushed).is_durable
        if durable:
            self._oracle.acknowledge(self._promise, self._unwritten == self._count_unwritten())
        self._promise = None

    def _count_unwritten(self) -> int:
        assert self._observer is not None
        counters = self._observer.ask(protocol.Ask(), answer=protocol.Snapshot).state["counters"]
        return sum(counters[name] for name in LOST_UNWRITTEN)

    def flush(self) -> None:
        """Saves some, and returns as soon as they are safe."""
        with expecting_death():
            for talker in self.talkers:
                talker.save_new(LEND)
            self._flush(self.talkers[0])
            self.end_flush()

    def _reset(self, talker: Talker) -> None:
        """Its namespace begins anew, and its engine too, as one whose weights were replaced."""
        model = talker.model
        talker.reset()
        self.talkers.remove(talker)
        talker.close()
        model.secret = b""
        self._join(model)
