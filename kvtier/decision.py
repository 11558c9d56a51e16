"""A decision: how many of a request's matched blocks it was offered, why, and what came of it. Pure.

The record that `kvtier explain` and the decision log show. How it is made: deciding.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvtier.block import BlockKey
from kvtier.cost import Candidate, Estimate
from kvtier.estimators import Link

REASONS: dict[str, str] = {
    "never_stored": "no engine has saved these tokens here",
    "evicted": "they were here, and their room was needed",
    "namespace_differs": "another engine has saved them, of which some fact differs: model, weights, dtype, layout, ranks",
    "too_short": "so few tokens are computed sooner than any load begins",
    "too_dear": "to compute them is expected to be faster than to fetch them",
    "timed_out": "they did not come in time",
    "tier_off": "the tier that has them was slower than computing in the last minute, and is off",
    "remote_away": "the remote, where they may be, does not answer",
    "tenant_loads": "its tenant has as many leases open as it may",
    "hold_out": "one of the few requests that go without, to see what the others gain",
}
OUTCOME = ("ttft_us", "wait_us", "load_us", "prefill_us", "prompt_tokens", "resident_tokens", "loaded_tokens",
           "computed_tokens")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ask:
    """The request behind a lookup; without a name there is none."""

    request: str = ""
    prompt_tokens: int = 0
    resident_tokens: int = 0  # the engine's own cache has them
    backlog_s: float = 0.0
    witness: bytes = b""


@dataclass(frozen=True, slots=True)
class Matched:
    """Of the blocks that the engine doesn't have, from the first on. A block counts for the shallowest tier that has it."""

    cpu_blocks: int  # the leading ones that are in RAM
    lower_blocks: int  # in RAM or on the drives
    all_blocks: int  # in RAM, on the drives or in the remote
    drive_blocks: int  # of lower_blocks, on the drives
    all_drive_blocks: int  # of all_blocks, on the drives
    away_blocks: int  # of all_blocks, in the remote
    block_bytes: int
    block_tokens: float
    missing: BlockKey | None  # the first that is nowhere
    is_remote_away: bool = False  # a remote may have it, and does not answer
    # Where frames lie: bytes of these blocks below; 0: as many as they have in RAM
    drive_bytes: int = 0
    all_drive_bytes: int = 0
    away_bytes: int = 0

    @property
    def tokens(self) -> dict[str, int]:
        """By tier, whatever tier the tokens before them are in."""
        below = {"nvme": self.all_drive_blocks}
        if self.away_blocks:
            below["remote"] = self.away_blocks
        tokens = {tier: round(blocks * self.block_tokens) for tier, blocks in below.items()}
        return {"cpu": round(self.all_blocks * self.block_tokens) - sum(tokens.values()), **tokens}

    @property
    def frames(self) -> dict[str, list[int]]:
        """By tier, where some lie: bytes of the blocks that are taken from there, and bytes that lie there of them."""
        drives = "nvme", self.all_drive_blocks * self.block_bytes, self.all_drive_bytes
        remote = "remote", self.away_blocks * self.block_bytes, self.away_bytes
        return {tier: [size, stored] for tier, size, stored in (drives, remote) if 0 < stored < size}

    def candidates(self, engine: Link, below: Mapping[str, Link], now: float) -> list[Candidate]:
        """The tier boundaries: nothing, what is in RAM, what RAM and the drives have, all; but those that add nothing.
        `engine`: its link, from RAM; `below`: those to RAM, by tier."""
        found = [Candidate(0, 0.0, "")]
        from_drives = "nvme", self.all_drive_bytes or self.all_drive_blocks * self.block_bytes
        from_remote = "remote", self.away_bytes or self.away_blocks * self.block_bytes
        for tier, blocks, ways in (
            ("cpu", self.cpu_blocks, ()),
            ("nvme", self.lower_blocks, (("nvme", self.drive_bytes or self.drive_blocks * self.block_bytes),)),
            ("remote", self.all_blocks, (from_drives, from_remote)),
        ):
            tokens = round(blocks * self.block_tokens)
            if tokens > found[-1].tokens:
                # Nothing is offered that is not in RAM: first the ways from below, side by side, then the engine's.
                needed = [(way, below[way].seconds(n, now=now)) for way, n in ways if n]
                load_s = max((seconds for _, seconds in needed), default=0.0)
                load_s += engine.seconds(blocks * self.block_bytes)
                found.append(Candidate(tokens, load_s, tier, tuple(way for way, _ in needed if way != tier)))
        return found


@dataclass(slots=True)
class Decision:
    engine: str
    ask: Ask
    mode: str
    at: float
    matched: dict[str, int]
    chosen: Estimate | None = None  # None: there was nothing to choose
    estimates: Sequence[Estimate] = ()
    links: Mapping[str, int] = field(default_factory=dict)  # what was believed of them
    queued: Mapping[str, int] = field(default_factory=dict)  # bytes that were ahead of it, by tier
    frames: Mapping[str, list[int]] = field(default_factory=dict)  # as Matched has them
    calibrated: bool = False
    held_out: bool = False
    user: str = ""  # whose engine it is; the engine's name may be another's later
    block_tokens: float = 1.0
    backlog_until: float = 0.0  # by then what is ahead of it is expected to be done
    patience_until: float = float("inf")  # where nothing is calibrated
    offered_tokens: int = 0
    offered: dict[str, int] = field(default_factory=dict)
    reason: str = ""
    detail: str = ""
    answered_at: float | None = None
    actual: Mapping[str, int] | None = None
    gain_s: float = 0.0  # GPU time saved, net
    regret_s: float = 0.0

    @property
    def tier(self) -> str:
        """The deepest that it was offered blocks of; empty when none."""
        return next((tier for tier in ("remote", "nvme", "cpu") if self.offered.get(tier)), "")

    @property
    def without(self) -> Estimate | None:
        """Of computing it all."""
        return next((e for e in self.estimates if not e.candidate.tokens), None)

    @property
    def fetch(self) -> Estimate | None:
        """Of what was chosen, or of the best of what wasn't."""
        return next((e for e in self.estimates if e.candidate.tokens), None)

    def record(self, epoch_s: float) -> dict[str, object]:
        """As JSON values; `epoch_s` is what to add to the daemon's clock."""
        without, fetch, chosen = self.without, self.fetch, self.chosen
        staged = None if self.answered_at is None else _ms(self.answered_at - self.at)
        return {
            "request": self.ask.request,
            "engine": self.engine,
            "at": round(self.at + epoch_s, 3),
            "mode": self.mode,
            "prompt_tokens": self.ask.prompt_tokens,
            "resident_tokens": self.ask.resident_tokens,
            "matched_tokens": sum(self.matched.values()),
            "matched": self.matched,
            "frames": self.frames,
            "offered_tokens": self.offered_tokens,
            "offered": self.offered,
            "reason": self.reason,
            "detail": self.detail,
            "calibrated": self.calibrated,
            "assumed": {} if chosen is None else {
                **chosen.as_counts(), **self.links, **{f"{tier}_queued_bytes": n for tier, n in self.queued.items()}
            },
            "predicted": {
                "fetch_ms": None if fetch is None else _ms(fetch.ttft_s),
                "recompute_ms": None if without is None else _ms(without.ttft_s),
                "load_ms": None if fetch is None else _ms(fetch.candidate.load_s),
                "prefill_ms": None if chosen is None else _ms(chosen.recompute_s + chosen.rest_s),
            },
            "actual": None if self.actual is None else {
                **{name.removesuffix("_us") + "_ms": _ms(self.actual[name] / 1e6) for name in OUTCOME[:4]},
                "staged_ms": staged,
            },
            "arm": "fetch" if self.offered_tokens else "recompute",
            "saved_tokens": 0 if self.actual is None else self.actual["loaded_tokens"],
            "saved_gpu_ms": _ms(self.gain_s),
            "regret_ms": _ms(self.regret_s),
        }  # fmt: skip


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
