"""A simulated engine, as the vLLM connector makes one: a scheduler that asks, workers that copy.

    away --start--> up --crash, hang up, refused--> draining --copies over, wire empty--> away

A message takes a while but none overtakes another. What a scheduler said before it died is still heard.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvtier.block import ABSENT, BELOW, block_key, namespace_secret, private_secret
from kvtier.session import NOTHING

from .arena_model import Meaning, part_of
from .asking import Asking
from .jobs import Job, Request

if TYPE_CHECKING:
    from .node import Node
    from .simulation import Namespace, Simulation

ROOT = b"the daemon's root"
BUSY_UNTIL = 10.0  # simulated seconds in which engines begin requests and come back


@dataclass(eq=False)
class EngineModel:
    sim: Simulation | Node
    name: str
    namespace: Namespace
    state: str = "away"
    stay: int = 0  # which life this is
    wish: int = 0  # lent slots, when it is not resting
    token: bytes = b""  # private since a reset; a process that dies takes it along
    reset_due: bool = False  # it was reset while away
    lent: list[int] = field(default_factory=list)
    open: dict[int, Request] = field(default_factory=dict)  # lease -> request that waits or loads
    jobs: list[Job] = field(default_factory=list)
    copies: int = 0  # parts handed to workers and not over
    heard: bool = True  # False once the daemon refused it
    shared_secret: bytes = b""
    secret: bytes = b""
    version: str = ""  # of the weights: part of what each key means
    asking: Asking = field(init=False)
    _wire_free_at: float = 0.0
    _is_bereft: bool = False  # its daemon has died, and it still drains
    _leases: itertools.count = field(default_factory=lambda: itertools.count(1))
    _tokens: itertools.count = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.asking = Asking(self)

    # --- life --------------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        return not self.open and not self.jobs and not self.copies and self.state != "draining"

    def start(self) -> None:
        if self.state != "away":
            return
        self.stay += 1
        self.state, self.heard = "up", True
        self.wish = self.sim.random.choice((1, 2, 4, 9))
        epoch = self.sim.join(self.name, self.namespace, self.wish)
        self.shared_secret = namespace_secret(ROOT, self.namespace.digest, epoch)
        self.secret = private_secret(self.shared_secret, self.token) if self.token else self.shared_secret
        # Engines of one epoch run the same weights; one that was reset has some of its own.
        self.version = self.token.decode() or self.sim.weights_of(self.namespace)
        if self.reset_due:
            self._send_reset()
        self.asking.begin_stay()
        self.later(0.05, "ticks", self._tick)

    def _tick(self) -> None:
        if self.sim.now > BUSY_UNTIL:
            return
        self.later(0.1 if self.sim.drives is None else 0.06, "ticks", self._tick)
        luck = self.sim.random.random() * (0.951 if self.sim.is_calm else 1)
        if luck < 0.9:
            self._begin_request()
        elif luck < 0.92:
            self.asking.say_pace()
        elif luck < 0.95:
            self._rest()
        elif luck < (0.965 if self.sim.drives is None else 0.951):
            self.reset_cache()
        elif luck < 0.985:
            self.crash()
        elif luck < 0.993:
            self.hang_up()
        else:
            self._break_the_protocol()

    def crash(self) -> None:
        """The scheduler's process dies. Its workers may still finish what they were told."""
        self._end("crashes")
        self.token, self.reset_due = b"", False

    def hang_up(self) -> None:
        """The scheduler gives up this stay, and comes back with what it knows."""
        self._end("hangs up")
        if self.sim.chance(0.2):
            self._new_token()
            self.reset_due = True

    def _end(self, how: str) -> None:
        self.state = "draining"
        self.open.clear()
        self.jobs.clear()
        self.lent = []
        self.say(how, self._fall_silent, always=True)

    def _fall_silent(self) -> None:
        self.sim.leaving(self.name)
        self._over(self.sim.life)

    def on_daemon_died(self) -> None:
        """Its slots and leases mean nothing any more. It comes back when its workers have finished."""
        if self.state != "away" and not self._is_bereft:
            self._is_bereft = True
            self.state = "draining"
            self.open.clear()
            self.jobs.clear()
            self.lent = []
            self._over(0)

    def _over(self, life: int) -> None:
        """The daemon has heard the end of the scheduler; the rest is heard when no worker copies. 0: it has died."""
        if life not in (0, self.sim.life):
            return
        if self.copies and self.sim.habits.leaves_when_copies_are_over:
            self.sim.after(0.02, f"{self.name} drains", lambda: self._over(life))
            return
        if life:
            self.sim.leave(self.name)
        self.state, self._is_bereft = "away", False
        if self.sim.now < BUSY_UNTIL:
            self.sim.after(self.sim.delay(0.5), f"{self.name} comes back", self.start)

    def _rest(self) -> None:
        """It wants fewer slots for a while, and gives back what it holds above that; now and then it wants too many."""
        few = self.sim.random.choice((0, 0, 1, 3, 20))
        back, self.lent = self.lent[few:], self.lent[:few]
        self.say(f"wants {few} slots", lambda: self.sim.want(self.name, few))
        if back:
            self.say(f"gives back {back}", lambda: self.sim.give_back(self.name, back))
        wish = self.wish
        self.later(0.5, f"wants {wish} slots", lambda: self.say("wants", lambda: self.sim.want(self.name, wish)))

    def reset_cache(self) -> None:
        """The weights change: nothing saved so far means anything to this engine any more."""
        self._new_token()
        for request in list(self.open.values()):
            request.barred = True
            self._abort(request)
        for job in self.jobs:
            job.request.barred = job.failed = True
        self._send_reset()

    def _new_token(self) -> None:
        self.token = f"{self.name}'s {next(self._tokens)}. reset".encode()

    def _send_reset(self) -> None:
        self.reset_due = False
        self.secret = private_secret(self.shared_secret, self.token)
        self.version = self.token.decode()
        self.say("resets", lambda: self.sim.reset(self.name, self.namespace))

    def _break_the_protocol(self) -> None:
        """The daemon refuses it and hears nothing that it says later."""
        key = self._some_blocks().keys[0]

        def refused() -> None:
            self.sim.commit_of_a_slot_that_is_not_lent(self.name, key)
            self.heard = False
            if self.state == "up":
                self.hang_up()

        self.say("names a slot that is not its own", refused)

    # --- requests ----------------------------------------------------------------------------------------------

    def on_lent(self, slots: list[int]) -> None:
        if self.state == "up":
            self.later(0.01, f"gets slots {slots}", lambda: self.lent.extend(slots))

    def _begin_request(self) -> None:
        request = self._some_blocks()
        if self.sim.chance(0.12):  # it doesn't ask what is there
            self._save(request, range(len(request.keys)))
            return
        request.lease = next(self._leases)
        self.open[request.lease] = request
        self.say(f"looks up {request.asked} keys, lease {request.lease}", lambda: self._ask(request))
        if self.sim.chance(0.1):
            self.later(0.05, f"aborts lease {request.lease}", lambda: self._abort(request))

    def _some_blocks(self) -> Request:
        turn = self.sim.talks[self.namespace].turn()
        twice = turn.texts[:2] if not self.namespace.is_chain and self.sim.chance(0.6) else []
        texts = turn.texts[: turn.asked] + twice + turn.texts[turn.asked :]
        meanings: list[Meaning] = [(self.namespace.digest[:4].hex(), self.version, text) for text in texts]
        keys = [block_key(self.secret, b"%d" % text) for text in texts]
        for key, meaning in zip(keys, meanings, strict=True):
            self.sim.learn(key, meaning, self.namespace)
        return Request(keys, meanings, turn.asked + len(twice), texts[0], turn.hints)

    def _ask(self, request: Request) -> None:
        keys = request.keys[: request.asked]
        skip = self.sim.random.choice((*[0] * 7, len(keys) // 2, len(keys) // 2, len(keys)))
        request.ask = self.asking.ask(len(keys), skip, request.conversation)
        if request.ask.request and request.hints != NOTHING:
            self.sim.begin(self.name, request.ask.request, request.hints)
        answer = self.sim.lookup(self.name, request.lease, keys, skip, request.ask)
        if answer is not None:
            self.on_answer(request.lease, answer)
            return
        self.asking.wait(request.lease)
        if self.sim.chance(self.sim.reset_chance):
            mate = self.sim.random.choice([other for other in self.sim.engines if other.namespace is self.namespace])
            self.later(0.02, f"waits, {mate.name} resets", lambda: mate.state == "up" and mate.reset_cache())

    def on_answer(self, lease: int, answer: list[int]) -> None:
        """At once, or after the lookup had to wait."""
        if request := self.open.get(lease):
            answer = self.sim.must_answer((self.name, lease), answer, request.keys[: request.asked])
            self.later(0.02, f"hears lease {lease}: {answer}", lambda: self._use(request, answer))

    def _use(self, request: Request, answer: list[int]) -> None:
        if request.lease not in self.open:
            return
        request.jobs += 1
        here = [i for i, slot in enumerate(answer) if slot < BELOW]
        absent = [i for i, slot in enumerate(answer) if slot == ABSENT]
        if not here or self.sim.chance(0.1):
            self._release(request, 0)
        elif self.sim.chance(0.1):
            self.later(2.0, f"held lease {request.lease} for nothing", lambda: self._abort(request))
        else:
            self._load(request, here, [answer[i] for i in here])
        self._save(request, [*absent, *range(request.asked, len(request.keys))])
        request.jobs -= 1
        self._end_request(request)

    def _abort(self, request: Request) -> None:
        """A load that runs is not stopped; its end releases the lease."""
        if request.lease in self.open and not any(job.loads and job.request is request for job in self.jobs):
            self._release(request, 0)

    def _release(self, request: Request, loaded: int) -> None:
        del self.open[request.lease]
        load_s = self.asking.load_s()
        self.say(f"releases {request.lease}", lambda: self.sim.release(self.name, request.lease, loaded, load_s))
        self.asking.end(request.ask, loaded * self.namespace.block_tokens)
        self._end_request(request)

    def _end_request(self, request: Request) -> None:
        """If nothing of it is under way, its keys are touched."""
        if request.jobs or request.lease in self.open or request.over:
            return
        request.over = True
        keys = [] if request.barred else request.keys[: self.sim.random.choice((0, 1, *[len(request.keys)] * 12))]

        def touch() -> None:
            self.sim.touch(self.name, keys, request.ask.request)

        self.later(0.02, "is through", lambda: self.say("touches", touch))

    # --- copies ------------------------------------------------------------------------------------------------

    def _load(self, request: Request, which: list[int], slots: list[int]) -> None:
        job = self._job(request, True, which, slots)
        for rank in range(self.namespace.ranks):
            self._hand_to_worker(job, lambda rank=rank: self._read(job, rank))

    def _save(self, request: Request, which: list[int] | range) -> None:
        count = min(len(which), len(self.lent))
        if not count or request.barred or request.hints.no_store:
            self._end_request(request)
            return
        cuts = [0, self.sim.random.randint(1, count), count]  # what comes first isn't always done first
        for begin, end in itertools.pairwise(cuts if self.sim.chance(0.3) else [0, count]):
            slots, self.lent = self.lent[: end - begin], self.lent[end - begin :]
            if slots:
                job = self._job(request, False, list(which)[begin:end], slots)
                for rank in range(self.namespace.ranks):
                    self._hand_to_worker(job, lambda job=job, rank=rank: self._write(job, rank))

    def _job(self, request: Request, loads: bool, which: list[int], slots: list[int]) -> Job:
        keys, meanings = [request.keys[i] for i in which], [request.meanings[i] for i in which]
        name = f"{self.name}'s {'load' if loads else 'save'} {slots}"
        befores = [request.keys[i - 1] if i and self.namespace.is_chain else b"" for i in which]
        gpu = None if self.sim.gpu is None else (self.sim.gpu.mirror.base, self.sim.gpu.device)
        job = Job(request, name, self.sim.arena, gpu, loads, slots, keys, meanings, befores, self.namespace.ranks)
        request.jobs += 1
        self.jobs.append(job)
        return job

    def _hand_to_worker(self, job: Job, begin: Callable[[], None]) -> None:
        self.copies += 1
        self.sim.after(self.sim.delay(0.05), f"{job.name} begins", begin)

    def _read(self, job: Job, rank: int) -> None:
        places = [job.memory(slot) for slot in job.slots]
        parts = [part_of(slot, self.namespace.units, rank, self.namespace.ranks) for _, slot in places]
        for part, (arena, slot), meaning in zip(parts, places, job.meanings, strict=True):
            assert arena.is_right(part, slot, meaning), f"{job.name} would read what is not {meaning}"
        seen = [arena.begin_read(part) for part, (arena, _) in zip(parts, places, strict=True)]

        def end() -> None:
            for part, (arena, _), writes in zip(parts, places, seen, strict=True):
                arena.end_read(part, writes)
            self._done(job, failed=self.sim.chance(0.03))

        self.sim.after(self.sim.delay(0.1), f"{job.name} ends, rank {rank}", end)

    def _write(self, job: Job, rank: int) -> None:
        parts = [part_of(slot, self.namespace.units, rank, self.namespace.ranks) for slot in job.slots]
        who = f"{job.name}, rank {rank},"
        for part in parts:
            job.arena.begin_write(who, part)

        def end() -> None:
            failed = self.sim.chance(0.05)
            for part, slot, meaning in zip(parts, job.slots, job.meanings, strict=True):
                job.arena.end_write(who, part, slot, meaning, whole=not failed)
            self._done(job, failed)

        self.sim.after(self.sim.delay(0.1), f"{job.name} ends, rank {rank}", end)

    def _done(self, job: Job, failed: bool) -> None:
        self.copies -= 1
        job.ranks -= 1
        job.failed |= failed
        if job not in self.jobs or job.settled:  # of a stay that is over
            return
        if job.ranks and self._waits_for_all_ranks(job):
            return
        job.settled = True
        self.later(0.01, f"settles {job.name}", lambda: self._settle(job))

    def _waits_for_all_ranks(self, job: Job) -> bool:
        habits = self.sim.habits
        if job.loads:
            return habits.releases_when_all_ranks_are_done
        return habits.gives_back_when_all_ranks_are_done if job.failed else habits.commits_when_all_ranks_are_done

    def _settle(self, job: Job) -> None:
        if job not in self.jobs:
            return
        self.jobs.remove(job)
        job.request.jobs -= 1
        name = job.request.ask.request
        if job.loads:
            self._release(job.request, 0 if job.failed else len(job.slots))
        elif job.failed:
            self.say(f"gives back {job.slots}", lambda: self.sim.give_back(self.name, job.slots))
        else:
            self.say(f"commits {job.slots}", lambda: self.sim.commit(self.name, job.keys, job.slots, job.befores, name))
        self._end_request(job.request)

    # --- the wire ----------------------------------------------------------------------------------------------

    def say(self, what: str, action: Callable[[], None], always: bool = False) -> None:
        """To the daemon: late, in order."""
        self._wire_free_at = max(self.sim.now + self.sim.delay(0.01), self._wire_free_at)
        life = self.sim.life

        def unless_dead() -> None:
            if self.sim.life == life and (always or self.heard):
                action()

        self.sim.at(self._wire_free_at, f"{self.name} {what}", unless_dead)

    def later(self, seconds: float, what: str, action: Callable[[], None]) -> None:
        """Within this stay."""
        stay = self.stay

        def unless_over() -> None:
            if self.state == "up" and self.stay == stay:
                action()

        self.sim.after(self.sim.delay(seconds), f"{self.name} {what}", unless_over)
