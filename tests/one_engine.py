"""One engine that asks: what it is said to have matched, how fast it is, what came of it. For tests of decisions."""

from kvtier.deciding import Decisions
from kvtier.decision import Ask, Matched
from kvtier.estimators import Link, Prefill
from kvtier.ghosts import Ghosts
from kvtier.stats import Stats

ENGINE = "engine"
LEASE = (ENGINE, 1)
MIB = 1024**2
TOKENS = 128  # of one block
# 8B on one H100: 2,048 tokens take 64 ms, 8,192 take 260 ms, 32,768 take 1.5 s
PACE = {**Prefill(0.008, 26e-6, 0.6e-9, 8192, 100).to_counts(), "arrivals_mhz": 1000, "busy_permille": 300}


def decisions_of(ghosts: Ghosts | None = None) -> Decisions:
    """With fast drives."""
    made = Decisions(ghosts or Ghosts(), Stats())
    made.mode = "decide"
    made.drives = Link(0.001, 7e9)
    made.join(ENGINE, "red", 0.0)
    made.pace(ENGINE, PACE)
    return made


def matched(
    cpu: int = 0, nvme: int = 0, away: int = 0, missing: bytes | None = None, block_bytes: int = 16 * MIB
) -> Matched:
    """In this order: the first in RAM, the next on the drives, the last in the remote."""
    lower = cpu + nvme
    return Matched(cpu, lower, lower + away, nvme, nvme, away, block_bytes, TOKENS, missing)


def ask(blocks: int, request: str = "request", more: int = 100, backlog_s: float = 0.0, witness: bytes = b"") -> Ask:
    return Ask(request, blocks * TOKENS + more, 0, backlog_s, witness)


def outcome(ttft_s: float, loaded: int = 0, prefill_s: float = 0.01) -> dict[str, int]:
    return {"ttft_us": int(ttft_s * 1e6), "prefill_us": int(prefill_s * 1e6), "loaded_tokens": loaded}


def last(decisions: Decisions) -> dict:
    return decisions.explain("last", 1)[0]
