"""What stays in RAM: hit rates by policy against the optimum, agents that wait for tools, and what a decision costs.

    python benchmarks/bench_policy.py --traces FOLDER [--json] [--trace FILE] [--parts hits,made_up,tool_calls,cost]

Traces are not part of the project: FOLDER (or KVTIER_TRACES) has Mooncake's JSONL. All *.jsonl there are replayed;
mooncake_conversation_trace.jsonl is called `conversation`, lmcache_agent_miniswe.jsonl `agents`.

hits        tokens of the prompts that were in a cache of 1, 5, 10 and 25 % of the trace's unique blocks, as a share of
            Belady's MIN with bypass. kvtierd's own BlockStore, whole blocks only (kvtier/replay/hits.py); MIN and
            `reference_lru` are exact and keep the partial last block of a prompt too (kvtier/replay/caches.py).
              no_hints    kvtier's policy. It sees keys, parents and times
              end_hints   the same, and clients say whose each request is and which is the last of a session
                          (kvtier/replay/sessions.py: recovered with foresight where the trace names no sessions. An
                          upper bound: a real client often doesn't know that nobody will come back)
              lru, s3fifo, arc   in the same store, also leaf first
made_up     the same for traces of one habit each (made_up.py): only whether kvtier is worse than LRU
tool_calls  agents whose tools take seconds (tool_calls.py): share of the returns within the hinted time that find all
            their blocks in RAM, which holds a quarter of what is alive
cost        one decision of the policy with 1,000,000 blocks in it, and what a session takes beside 16 bytes a key

Summed up: `worst_over_lru`, 1 - kvtier / lru in the same store, the worst of all traces and capacities of `hits`, with and
without hints; below 0 it never loses. `worst_over_reference_lru`: against the exact LRU.

Confessions. Written by the authors of kvtier; the prior of its returns is the conversation trace's own median gap and
share of returns, which it would have learnt within minutes. Where it gains next to nothing: with room for a quarter of
all blocks; and on any trace where it can't be seen who returns.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tracemalloc
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import tool_calls
from made_up import MAKERS, made_up

from kvtier.arena import SLAB_ALIGN, SLABS_MIN
from kvtier.block import KEY_BYTES, SLOT_UNIT
from kvtier.decision import Ask
from kvtier.errors import ConfigError
from kvtier.replay.caches import POLICIES
from kvtier.replay.clock import Clock
from kvtier.replay.hits import hits_of_store
from kvtier.replay.node import Node, Tiers, keys_of
from kvtier.replay.sessions import told
from kvtier.replay.trace import Trace, read

NAMES = {"mooncake_conversation_trace": "conversation", "lmcache_agent_miniswe": "agents"}
BLOCK_TOKENS = (512, 64, 16, 128, 256, 32)  # tried in this order
PERCENTS = (1, 5, 10, 25)
ROWS = {  # row -> policy of the store, whether hints are given
    "no_hints": ("value", False),
    "end_hints": ("value", True),
    "lru": ("lru", False),
    "s3fifo": ("s3fifo", False),
    "arc": ("arc", False),
}
REFERENCES = {"min": "min", "reference_lru": "lru", "infinite": "infinite"}
MADE_UP_ROWS = ("no_hints", "lru")
PARTS = ("hits", "made_up", "tool_calls", "cost")
BLOCKS, VICTIMS, OF_SESSION = 1_000_000, 5000, 32
SESSIONS = 10_000
KEEP_SESSIONS = ["session", "lineage", "retention", "returns", "ranking", "categories", "expecting", "standing", "pins"]
KEEP_SESSIONS += ["listing", "forgetting", "replay/node"]
BARS = {
    "conversation.no_hints.5": ">= 0.58",
    "conversation.no_hints.10": ">= 0.80",
    "conversation.no_hints.25": ">= 0.97",
    "conversation.end_hints.5": ">= 0.98",
    "worst_over_lru": "<= 0.01",
    "tool_calls.in_ram": ">= 0.90",
    "tool_calls.wrong_hint_cost": "<= 0",
    "victim_us": "<= 20",
    "session_bytes": "<= 1024",
}
Cell = tuple[str, str, int]  # trace, row, percent

_traces: dict[str, Trace] = {}  # of this process and its children


# --- hits --------------------------------------------------------------------------------------------------------


def cells(names: Iterable[str], rows: Iterable[str]) -> list[Cell]:
    """The longest first."""
    found = [
        (name, row, percent)
        for name in names
        for row in (*rows, *REFERENCES)
        for percent in PERCENTS
        if row != "infinite" or percent == PERCENTS[0]
    ]
    return sorted(found, key=lambda cell: (cell[1] in REFERENCES, -len(_traces[cell[0]].requests)))


def hit_rate(cell: Cell) -> tuple[Cell, float]:
    name, row, percent = cell
    trace = _traces[name]
    capacity = trace.unique_blocks * percent // 100
    if row in REFERENCES:
        hits = POLICIES[REFERENCES[row]](trace, capacity)
    else:
        policy, hinted = ROWS[row]
        hits = hits_of_store(trace, capacity, policy, told(trace) if hinted else ())
    return cell, hits / trace.prompt_tokens


def hits(names: list[str], rows: Iterable[str]) -> dict[str, Any]:
    """By trace, row and percent: share of MIN. `rates` has the hit rates themselves."""
    jobs = cells(names, rows)
    rates: dict[str, dict[str, dict[str, float]]] = {name: {} for name in names}
    with Pool() as pool:
        for done, ((name, row, percent), rate) in enumerate(pool.imap_unordered(hit_rate, jobs), 1):
            rates[name].setdefault(row, {})[str(percent)] = rate
            progress(f"{done} of {len(jobs)}: {name} {row} {percent} %")
    found: dict[str, Any] = {}
    for name in names:
        least = rates[name]["min"]
        shares = {
            row: {p: round(rates[name][row][p] / least[p], 4) for p in map(str, PERCENTS)}
            for row in (*rows, "reference_lru")
        }
        of_row = {row: {p: round(rate, 4) for p, rate in sorted(of.items())} for row, of in rates[name].items()}
        found[name] = {**shares, "rates": of_row, "unique_blocks": _traces[name].unique_blocks}
    return found


def worst_over(found: dict[str, Any], row: str) -> float:
    """How much less than this row's hits kvtier has, the worst case."""
    return round(
        max(
            1 - of[ours][percent] / of[row][percent]
            for of in found.values()
            for ours in ("no_hints", "end_hints")
            for percent in of.get(ours, ())
            if of[row][percent]
        ),
        4,
    )


# --- tool calls --------------------------------------------------------------------------------------------------


def tool_call(variant: str) -> tuple[str, dict[str, Any]]:
    return variant, tool_calls.measure(_traces["agents"], variant)


def all_tool_calls() -> dict[str, Any]:
    found = {}
    with Pool() as pool:
        for variant, of in pool.imap_unordered(tool_call, tool_calls.VARIANTS):
            found[variant] = of
            progress(f"tool calls: {variant}")
    wait = {variant: of["wait_ms_mean"] for variant, of in found.items()}
    worst = max(wait["too_long_10x"], wait["too_short_10x"])
    return {
        "in_ram": found["exact"]["in_ram"],
        "wrong_hint_cost": round(worst / max(1e-9, wait["no_hint"]) - 1, 4),
        **{variant: found[variant] for variant in tool_calls.VARIANTS},
    }


# --- cost --------------------------------------------------------------------------------------------------------


@dataclass
class Traffic:
    """Sessions of OF_SESSION blocks on a store that holds so many blocks; each comes back now and then."""

    node: Node
    clock: Clock
    sessions: int = 0
    requests: int = 0

    @classmethod
    def on(cls, blocks: int) -> "Traffic":
        clock = Clock()
        node = Node(clock, Tiers(blocks * SLOT_UNIT), SLOT_UNIT, 16, decides=False)
        node.join("engine", OF_SESSION)
        return cls(node, clock)

    def come(self, session: int, blocks: int = OF_SESSION, saves: bool = True) -> None:
        """A request of this session, a moment after the last one."""
        self.clock.now += 0.02
        self.requests += 1
        keys, name = keys_of(range(session * OF_SESSION, session * OF_SESSION + blocks)), str(self.requests)
        self.node.lookup("engine", self.requests, keys, 0, Ask(name, blocks * 16))
        self.node.release("engine", self.requests, 0, 0.0)
        if saves:
            self.node.save("engine", keys, name)
        self.node.end("engine", keys, name)

    def fill(self, sessions: int) -> None:
        """New ones; some of them have a second turn at once, so that there are categories."""
        for _ in range(sessions):
            self.come(self.sessions, OF_SESSION // 2 if self.sessions % 3 == 0 else OF_SESSION)
            if self.sessions % 3 == 0:
                self.come(self.sessions)
            self.sessions += 1


def victim_ns() -> list[int]:
    """What each decision took, while sessions come, come back and go. Of nothing but the decision: what the index and
    the arena do with a victim is not in it."""
    traffic = Traffic.on(BLOCKS)
    traffic.fill(BLOCKS // OF_SESSION)
    policy, took = traffic.node.store.ram.policy, []
    decide, chance = policy.victim, random.Random(1)

    def timed(*given: Any) -> Any:
        begun = perf_counter_ns()
        victim = decide(*given)
        took.append(perf_counter_ns() - begun)
        return victim

    policy.victim = timed
    while len(took) < VICTIMS:
        traffic.come(chance.randrange(traffic.sessions))
        traffic.node.store.retention.tick(traffic.clock.now)
        traffic.fill(1)
    return took


def bytes_of_sessions(keys: int) -> float:
    """What one of SESSIONS sessions of so many keys takes, counted where sessions are kept (columns that are there from the
    start too) and in the keys themselves; the table of all keys isn't: kvtierd's is native. No block is in RAM."""
    kept_in = [tracemalloc.Filter(True, f"*/kvtier/{file}.py") for file in KEEP_SESSIONS]
    tracemalloc.start()
    traffic = Traffic.on(SLABS_MIN * SLAB_ALIGN // SLOT_UNIT)
    for session in range(SESSIONS):
        traffic.come(session, keys, saves=False)
    taken = tracemalloc.take_snapshot().filter_traces(kept_in)
    tracemalloc.stop()
    traffic.node.store.retention.tick(traffic.clock.now + 60)  # of many sessions, states are counted now and then
    assert sum(traffic.node.store.retention.snapshot(traffic.clock.now)["sessions"].values()) == SESSIONS
    return sum(trace.size for trace in taken.traces) / SESSIONS


def cost() -> dict[str, Any]:
    progress("cost: sessions")
    of_few, of_many = bytes_of_sessions(1), bytes_of_sessions(OF_SESSION)
    progress("cost: a million blocks")
    took = sorted(victim_ns())
    return {
        "victim_us": round(statistics.median(took) / 1e3, 2),
        "victim_us_p99": round(took[int(len(took) * 0.99)] / 1e3, 2),
        "session_bytes": round(of_many - KEY_BYTES * OF_SESSION),
        "session_bytes_of_one_key": round(of_few - KEY_BYTES),
    }


# --- what is said ------------------------------------------------------------------------------------------------


def progress(said: str) -> None:
    print(f"\r... {said}".ljust(64), end="", file=sys.stderr, flush=True)


def read_all(folder: Path | None, more: list[Path]) -> None:
    """Into _traces. ConfigError where there is none."""
    files = sorted(folder.glob("*.jsonl")) if folder is not None and folder.is_dir() else []
    if not files and (folder is not None or not more):
        found = "traces are not part of the project" if folder is None else f"no *.jsonl in {folder}"
        raise ConfigError(f"{found}; name a folder of request traces with --traces or KVTIER_TRACES")
    for path in [*files, *more]:
        _traces[NAMES.get(path.stem, path.stem)] = _read(path)


def _read(path: Path) -> Trace:
    first: ConfigError | None = None
    for block_tokens in BLOCK_TOKENS:
        try:
            return read(path, block_tokens)
        except ConfigError as error:
            first = first or error
    assert first is not None
    raise first


def at(outcome: dict[str, Any], name: str) -> Any:
    """The value under a dotted name, or None."""
    for part in name.split("."):
        outcome = outcome.get(part, {}) if isinstance(outcome, dict) else {}
    return None if outcome == {} else outcome


def print_table(outcome: dict[str, Any]) -> None:
    for title, found in (("", outcome), ("made up: ", outcome.get("made_up", {}))):
        for name, of in found.items():
            if not isinstance(of, dict) or "rates" not in of:
                continue
            print(f"{title}{name}, {of['unique_blocks']:,} blocks; share of MIN (hit rate) with room for")
            print(f"{'':16}" + "".join(f"{f'{percent} %':>18}" for percent in PERCENTS))
            for row in [*of["rates"]]:
                shares = of.get(row, {"1": 1.0, "5": 1.0, "10": 1.0, "25": 1.0} if row == "min" else {})
                shown = [(shares.get(str(p)), of["rates"][row].get(str(p))) for p in PERCENTS]
                texts = (f"{share:.3f} ({rate:.4f})" if share is not None else "" for share, rate in shown)
                print(f"{row:16}" + "".join(f"{text:>18}" for text in texts))
            print()
    if "tool_calls" in outcome:
        print_tool_calls(outcome["tool_calls"])
    for name in (*BARS, "worst_over_reference_lru", "made_up.worst_over_lru", "victim_us_p99"):
        if (value := at(outcome, name)) is not None:
            print(f"{name:30}{value:10}  {BARS.get(name, '')}")


def print_tool_calls(found: dict[str, Any]) -> None:
    exact = found["exact"]
    print(
        f"tool calls: {exact['live_blocks']:,} blocks alive, RAM for {exact['ram_blocks']:,}; returns, and within the hint:"
    )
    titles = ("returns", "within", "all in RAM", "blocks in RAM", "wait ms", "p99", "drives busy")
    print(f"{'':16}" + "".join(f"{title:>15}" for title in titles))
    for variant in tool_calls.VARIANTS:
        of = found[variant]
        shares = "".join(f"{of[name]:15.3f}" for name in ("within_share", "in_ram", "blocks_in_ram"))
        waits = f"{of['wait_ms_mean']:15.1f}{of['wait_ms_p99']:15.0f}"
        print(f"{variant:16}{of['returns']:15,}{shares}{waits}{of['drives_busy']:15.0%}")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--traces", type=Path, help="folder of request traces; default KVTIER_TRACES")
    parser.add_argument("--trace", type=Path, action="append", default=[], help="one more, any number of times")
    parser.add_argument("--parts", default=",".join(PARTS), help="of %(default)s")
    given = parser.parse_args()
    folder = given.traces or (Path(os.environ["KVTIER_TRACES"]) if os.environ.get("KVTIER_TRACES") else None)
    parts = given.parts.split(",")
    try:
        read_all(folder, given.trace)
    except ConfigError as error:
        sys.exit(str(error))
    outcome: dict[str, Any] = {}
    if "hits" in parts:
        outcome |= hits(list(_traces), ROWS)
        outcome["worst_over_lru"] = worst_over(outcome, "lru")
        outcome["worst_over_reference_lru"] = worst_over({name: outcome[name] for name in _traces}, "reference_lru")
    if "made_up" in parts:
        _traces.update({name: made_up(name) for name in MAKERS})
        outcome["made_up"] = hits(list(MAKERS), MADE_UP_ROWS)
        outcome["made_up"]["worst_over_lru"] = worst_over({n: outcome["made_up"][n] for n in MAKERS}, "lru")
    if "tool_calls" in parts and "agents" in _traces:
        outcome["tool_calls"] = all_tool_calls()
    if "cost" in parts:
        outcome |= cost()
    print(file=sys.stderr)
    outcome["machine"] = {"cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 1)}
    outcome["command"] = " ".join(["python benchmarks/bench_policy.py", *sys.argv[1:]])
    print(json.dumps(outcome)) if given.json else print_table(outcome)


if __name__ == "__main__":
    main()
