"""Which codec a block is written with below RAM, and how large its place is. Pure.

    none      never
    a name    that codec, for whatever it makes smaller
    auto      of the lossless ones that make neither reading nor writing slower, the one that makes blocks smallest
    a wish    of a namespace's engines: that codec, which may lose some; what it can't do is written as it is in RAM

A codec pays only where it does not hold up the link. What comes over a link are frames, and each becomes a whole block:

    reading    decoding, by all threads >= 1.25 * ratio * link     so that what is spared is gained in time
    writing    encoding, by all that may >= 1.1 * link             or its limit; so that it takes no longer than now

A link that decoding holds up looks slow, and just so slow that the first doesn't hold: by its 1.25 that is noticed.

On drives a place is cut before anybody knows how large the frame will be. So it is the one that would have been cheapest
for the frames that came last: a smaller one spares more, and more often a frame doesn't fit and its place is lost. For
each size of place there is an extent that is being filled; so there are STEPS of them at most, and another one is taken
only where that is clearly cheaper.

What it costs and brings is learnt from each block that was written or read; at first it is believed to be good, so that it
is tried. What is not used now is tried with one block in TRY_EVERY. What is used has to be clearly worse than something
else before it is left.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

from kvtier.block import SLOT_UNIT
from kvtier.codec import LOSSLESS, RAW, Codec
from kvtier.estimators import Link
from kvtier.transfer import Demote, Finished, Promote

AUTO = "auto"
RATIO_MIN = 1.05  # a smaller gain isn't worth the work
READ_MARGIN, WRITE_MARGIN = 1.25, 1.1  # so much faster than needed
USED = 0.88  # of these margins, for the codec that is used now
STICKY, PLACE_STICKY = 1.02, 1.01  # so much better another codec, or place, must be
FITTED = 128  # frames that say how large the next ones will be
STEPS = 256  # sizes of places for blocks of one size
MISSED = 1 / 100  # of its block a frame is believed to have lacked that didn't fit; twice as much after each more in a row
SPEEDS, SPEEDS_BELIEVED = 15, 5  # blocks whose median says how fast a codec is; and what is believed counts for so many
TRY_EVERY = 1024  # blocks
SHOWN = 1024  # blocks that are told of as those of now
LOOKED_AT_EVERY = 32  # blocks: for so many a choice holds
PLANS_MAX = 4096  # namespaces and sizes that are remembered
# What is believed until it was measured: bytes of blocks a second and thread, encoded and decoded; their ratio
USUAL: dict[str, tuple[float, float, float]] = {
    "exp12": (10e9, 16e9, 1.3),
    "expz": (0.9e9, 2.2e9, 1.42),
    "int8": (3e9, 5e9, 1.75),
    "fp8": (3e9, 5e9, 1.95),
    "int4": (3e9, 5e9, 3.0),
}


@dataclass(slots=True)
class _Speed:
    """Bytes a second."""

    believed: float
    measured: deque[float] = field(default_factory=lambda: deque(maxlen=SPEEDS))

    def learn(self, size: int, seconds: float) -> None:
        if seconds > 0:
            self.measured.append(size / seconds)

    def fade(self) -> None:
        """The oldest is forgotten: of what is not used nobody may ever measure it again."""
        if self.measured:
            self.measured.popleft()

    @property
    def now(self) -> float:
        is_new = len(self.measured) < SPEEDS
        return median([*self.measured, *[self.believed] * (SPEEDS_BELIEVED * is_new)])


@dataclass(slots=True)
class _Work:
    """Of one codec."""

    encode: _Speed
    decode: _Speed
    blocks: int = 0
    bytes: int = 0  # of these blocks
    stored: int = 0  # bytes of their places


@dataclass(slots=True)
class _Fit:
    """How large the frames are that one codec makes of blocks of one namespace and size, and how fast: odd values take
    longer, and that is no reason to leave the blocks of others alone."""

    encode: _Speed
    decode: _Speed
    needed: deque[int] = field(default_factory=lambda: deque(maxlen=FITTED))  # bytes of places
    is_new: bool = True  # since `place` and `ratio` were reckoned
    place: int = 0
    ratio: float = 1.0
    missed: int = 0  # since one fitted
    is_tried: bool = False  # with one block, whose frame did not come yet


@dataclass(slots=True)
class _Plan:
    """For blocks of one namespace and size."""

    namespace: int
    size: int
    codec: Codec = RAW
    stored: int = 0
    chosen: int = 0  # blocks
    left: int = 0  # blocks until it is looked at again
    fits: dict[Codec, _Fit] = field(default_factory=dict)
    last: Codec = RAW  # that was used


class Coding:
    def __init__(
        self,
        wanted: str = RAW.name,
        threads: int = 1,
        unit: int = 1,
        link: Link | None = None,
        *,
        write_rate: float = float("inf"),
        extent_bytes: int = 0,
        without: Mapping[str, str] | None = None,
        encoders: int = 0,
    ) -> None:
        """Of one tier. `threads` encode and decode. `unit`: bytes that places are multiples of; 1: there are none. `link`:
        to RAM; None: of a tier that takes blocks as they are, whatever is wished. `write_rate`: no more is written in a
        second. `extent_bytes`: of what places are cut from, 0: of anything. `without`: codecs that this machine can't run,
        and why. `encoders`: threads that encode, where these are fewer."""
        assert wanted == RAW.name or link is not None
        self.wanted = wanted
        self._threads, self._unit, self._link, self._write_rate = max(1, threads), unit, link, write_rate
        self._encoders = encoders or self._threads
        self._extent_bytes, self._without = extent_bytes, dict(without or {})
        self._wishes: dict[int, Codec] = {}
        self._plans: dict[tuple[int, int], _Plan] = {}
        self._work: dict[str, _Work] = {}
        self._recent: deque[_Plan] = deque(maxlen=SHOWN)

    def wish(self, namespace: int, codec: Codec) -> None:
        """What the engines of this namespace let its blocks go through. They go through nothing else."""
        if self._link is not None and self._wishes.get(namespace, RAW) != codec:
            self._wishes[namespace] = codec
            for known in [known for known in self._plans if known[0] == namespace]:
                del self._plans[known]

    def choose(self, namespace: int, size: int) -> tuple[Codec, int]:
        """For the next block of this namespace and size: how it is written, and the bytes that its place should have. The
        same, however often it is asked, until one is `begun`."""
        plan = self._plans.get((namespace, size)) or self._begin(namespace, size)
        if plan.left <= 0:
            self._look_at(plan)
        is_turn = (plan.chosen + 1) % TRY_EVERY == 0 or (plan.chosen == 0 and plan.codec == RAW)
        tried = self._untried(plan) if is_turn else None
        return tried or (plan.codec, plan.stored)

    def begun(self, namespace: int, size: int, codec: Codec) -> None:
        """One is being written, with what was chosen; or as it is, where no place was to be had for a frame."""
        plan = self._plans.get((namespace, size))
        if plan is None:
            return
        self._recent.append(plan)
        plan.left -= 1
        plan.chosen += 1
        if codec not in (RAW, plan.codec):
            self._fit_of(plan, codec).is_tried = True
            plan.last = codec if plan.codec == RAW else plan.last
            self._fit_of(plan, codec).decode.fade()

    def expected(self, namespace: int, size: int) -> int:
        """Bytes that such a block takes below, on the mean."""
        plan = self._plans.get((namespace, size))
        return size if plan is None or plan.codec == RAW else round(size / self._fit(plan, plan.codec).ratio)

    # --- what is learnt ----------------------------------------------------------------------------------------

    def wrote(self, demote: Demote, done: Finished) -> None:
        """What `choose` said has come to an end."""
        if demote.codec == RAW or done.fault not in ("", "larger"):
            return
        work = self._work_of(demote.codec.name)
        work.encode.learn(demote.size, done.coded_s)
        if not done.fault and 0 < done.stored < demote.size:
            work.blocks += 1
            work.bytes += demote.size
            work.stored += done.stored if self._unit == 1 else demote.place_bytes
        plan = self._plans.get((demote.namespace, demote.size))
        if plan is None:
            return
        fit, is_larger = self._fit_of(plan, demote.codec), done.fault == "larger"
        fit.encode.learn(demote.size, done.coded_s)
        if is_larger:  # how much, nobody knows; at most half of the way is gone
            missing = min(int(demote.size * MISSED) << min(fit.missed, 8), (demote.size - demote.place_bytes) // 2)
            needed = self._place(demote.place_bytes + max(1, missing), demote.size)
            fit.missed += 1
        else:
            needed, fit.missed = self._place(done.stored or demote.size, demote.size), 0
        if fit.is_tried and not is_larger and needed * RATIO_MIN <= demote.size and fit.ratio < RATIO_MIN:
            fit.needed.clear()  # blocks aren't any more what they were when it was left
        fit.is_tried = False
        fit.needed.append(needed)
        fit.is_new = True
        if is_larger or len(fit.needed) == 1:
            plan.left = 0

    def read(self, promote: Promote, done: Finished) -> None:
        """A frame was read, and is a block again. Where its tier doesn't say by which codec, it is by the present one."""
        if done.fault or not 0 < done.stored < promote.size:
            return
        plan = self._plans.get((promote.namespace, promote.size))
        name = done.codec or (RAW if plan is None else plan.last).name
        if name in USUAL:
            self._work_of(name).decode.learn(promote.size, done.coded_s)
            for fit in [] if plan is None else [fit for codec, fit in plan.fits.items() if codec.name == name]:
                fit.decode.learn(promote.size, done.coded_s)

    # --- how -----------------------------------------------------------------------------------------------------

    def _begin(self, namespace: int, size: int) -> _Plan:
        while len(self._plans) >= PLANS_MAX:
            del self._plans[next(iter(self._plans))]
        plan = self._plans[namespace, size] = _Plan(namespace, size, stored=size)
        return plan

    def _allowed(self, namespace: int) -> Iterable[Codec]:
        if namespace in self._wishes:
            return (self._wishes[namespace],)
        names = LOSSLESS if self.wanted == AUTO else () if self.wanted == RAW.name else (self.wanted,)
        return [Codec(name) for name in names if name not in self._without]

    def _look_at(self, plan: _Plan) -> None:
        plan.left = LOOKED_AT_EVERY
        best, best_ratio = RAW, RATIO_MIN
        for codec in self._allowed(plan.namespace):
            is_used, ratio = codec == plan.codec, self._fit(plan, codec).ratio
            valued = ratio * STICKY if is_used else ratio
            if valued >= best_ratio and not self._slow(plan, codec, USED if is_used else 1.0):
                best, best_ratio = codec, valued
        plan.codec, plan.stored = best, plan.fits[best].place if best != RAW else plan.size
        plan.last = best if best != RAW else plan.last

    def _slow(self, plan: _Plan, codec: Codec, share: float = 1.0) -> tuple[str, float, float] | None:
        """What of it would hold up the link: its bytes a second by all threads, and how many would have to be."""
        if self.wanted != AUTO or codec.is_lossy:
            return None
        assert self._link is not None
        link, fit = self._link.delivered_per_s, self._fit(plan, codec)
        for way, speed, threads, needed in (
            ("decodes", fit.decode, self._threads, READ_MARGIN * fit.ratio * link),
            ("encodes", fit.encode, self._encoders, WRITE_MARGIN * min(link, self._write_rate)),
        ):
            if speed.now * threads < share * needed:
                return way, speed.now * threads, needed
        return None

    def _untried(self, plan: _Plan) -> tuple[Codec, int] | None:
        """What may be better by now than what is used, and so fits where that goes."""
        now = 1.0 if plan.codec == RAW else plan.fits[plan.codec].ratio
        others = [c for c in self._allowed(plan.namespace) if c != plan.codec]
        better = [c for c in others if plan.codec == RAW or self._fit(plan, c).ratio > now]
        if not better:
            return None
        codec = better[(plan.chosen + 1) // TRY_EVERY % len(better)]
        if plan.codec != RAW:
            return codec, plan.stored
        fit = self._fit(plan, codec)
        place = fit.place if fit.place < plan.size or self._unit == 1 else self._guess(codec, plan.size)
        if place >= plan.size and self._unit > 1:
            return None
        return codec, place

    def _fit_of(self, plan: _Plan, codec: Codec) -> _Fit:
        """As it was last reckoned."""
        fit = plan.fits.get(codec)
        if fit is None:
            encode, decode, _ = USUAL[codec.name]
            fit = plan.fits[codec] = _Fit(_Speed(encode), _Speed(decode))
        return fit

    def _fit(self, plan: _Plan, codec: Codec) -> _Fit:
        fit = self._fit_of(plan, codec)
        if fit.is_new:
            fit.is_new = False
            self._reckon(fit, codec, plan.size)
        return fit

    def _reckon(self, fit: _Fit, codec: Codec, size: int) -> None:
        needed = sorted(fit.needed) or [self._guess(codec, size)]
        if self._unit == 1:
            fit.place, fit.ratio = size, size * len(needed) / sum(needed)
            return
        if fit.needed:
            needed.append(self._place(needed[-1] + 1, size))  # one will come that is a little larger
        costs = {size: self._taken(size)}
        for place in {*needed, fit.place} - {0, size}:
            fits = bisect_right(needed, place) / len(needed)
            costs[place] = fits * self._taken(place) + (1 - fits) * (self._taken(size) + self._taken(place))
        best = min(costs, key=lambda place: (costs[place], place))
        if fit.place not in costs or costs[fit.place] > costs[best] * PLACE_STICKY:
            fit.place = best
        fit.ratio = costs[size] / costs[fit.place]

    def _guess(self, codec: Codec, size: int) -> int:
        return self._place(int(size / USUAL[codec.name][2]), size)

    def _place(self, stored: int, size: int) -> int:
        """With room for so many bytes of a block's frame; at most as large as the block."""
        if self._unit == 1:
            return min(stored, size)
        step = -(-size // (STEPS * self._unit)) * self._unit
        return min(max(-(-stored // step) * step, SLOT_UNIT), size)

    def _taken(self, place: int) -> float:
        """With its part of what is left at the end of an extent."""
        whole = self._extent_bytes // place if self._extent_bytes else 0
        return self._extent_bytes / whole if whole else place

    def _work_of(self, name: str) -> _Work:
        work = self._work.get(name)
        if work is None:
            encode, decode, _ = USUAL[name]
            work = self._work[name] = _Work(_Speed(encode), _Speed(decode))
        return work

    # --- what there is -------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, object]:
        """As JSON values: bytes, bytes a second of one thread, 0 where none was measured, and sentences. `codec`: what most
        bytes of the last blocks got."""
        plan = self._mostly()
        used = RAW if plan is None else plan.codec
        names = dict.fromkeys((*LOSSLESS, *(codec.name for codec in self._wishes.values()), *self._work))
        return {
            "wanted": self.wanted,
            "codec": str(used),
            "why": self._why(plan, used),
            "codecs": {name: self._row(name, plan, used) for name in names},
        }

    def _mostly(self) -> _Plan | None:
        """Of the last blocks' plans, the one with most bytes of those by the codec that most bytes got."""
        by_codec: dict[Codec, int] = {}
        by_plan: dict[int, int] = {}
        for plan in self._recent:
            by_codec[plan.codec] = by_codec.get(plan.codec, 0) + plan.size
            by_plan[id(plan)] = by_plan.get(id(plan), 0) + plan.size
        return max(self._recent, key=lambda plan: (by_codec[plan.codec], by_plan[id(plan)]), default=None)

    def _why(self, plan: _Plan | None, used: Codec) -> str:
        if self._link is None:
            return "it takes blocks as they are"
        if plan is not None and plan.namespace in self._wishes:
            return "its engine wishes it" if used != RAW else "its engine's wish makes these blocks no smaller"
        if self.wanted != AUTO:
            return "so it is set" if used.name == self.wanted else f"{self.wanted} makes these blocks no smaller"
        if plan is None:
            return "nothing was written yet"
        return "none pays" if used == RAW else "it makes blocks smallest of those that slow nothing down"

    def _row(self, name: str, plan: _Plan | None, used: Codec) -> dict[str, object]:
        work = self._work.get(name)
        speeds = {way: getattr(work, way) for way in ("encode", "decode")} if work is not None else {}
        return {
            "blocks": 0 if work is None else work.blocks,
            "bytes": 0 if work is None else work.bytes,
            "stored_bytes": 0 if work is None else work.stored,
            "ratio": round(work.bytes / work.stored, 3) if work is not None and work.stored else 0.0,
            **{
                f"{way}_bytes_per_s": round(speeds[way].now) if speeds and speeds[way].measured else 0
                for way in ("encode", "decode")
            },
            "why_not": "" if name == used.name else self._why_not(Codec(name), plan),
        }

    def _why_not(self, codec: Codec, plan: _Plan | None) -> str:
        if codec.name in self._without:
            return self._without[codec.name]
        if plan is None or codec not in self._allowed(plan.namespace):
            wished = sum(wish.name == codec.name for wish in self._wishes.values())
            return f"only engines of {wished} other namespace{'s' * (wished > 1)} wish it" if wished else "nobody wants it"
        ratio = self._fit(plan, codec).ratio
        if ratio < RATIO_MIN:
            return f"it makes blocks {ratio:.2f} times smaller, which is too little"
        slow = self._slow(plan, codec)
        if slow is None:
            is_less = plan.codec in plan.fits and ratio <= self._fit(plan, plan.codec).ratio * STICKY
            return "another makes blocks smaller" if is_less else "it may be the next"
        way, speed, needed = slow
        n = self._threads if way == "decodes" else self._encoders
        threads = "1 thread" if n == 1 else f"{n} threads"
        return f"it {way} {speed / 1e9:.1f} GB/s with {threads}; {needed / 1e9:.1f} are needed"
