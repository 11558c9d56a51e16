"""make soak: some minutes of a node's life. Engines hold conversations while they, the remote and kvtierd itself are
killed, frozen and started again, as a seed says; then kvtierd lives on, and is measured.

    first     faults of all kinds, kvtierd's restarts among them
    then      no restarts: what fills up fills up
    measured  memory, descriptors, threads
    at last   what kvtierd says it has is compared with what engines find, with `kvtier verify` and with the files

Every byte that is loaded is compared with what was saved. Exit status: 0 all is good, 1 it isn't, 2 wrong usage.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kvtierd import Engine
from rich.console import Console
from rich.table import Table
from soak.node import MODELS, Node, Sample, sample_of
from soak.slope import Slope, medians, slope_of
from soak.talker import SESSIONS, TURNS, names_of, outcome

from kvtier import protocol
from kvtier.block import BELOW, KEY_BYTES, block_key, pack_keys, unpack_slots
from kvtier.deciding import KEPT
from kvtier.tiers.remote.base import CALLS_MAX

MIB = 1024**2
FIRST, THEN = 0.3, 0.3  # of the time; the rest is measured
FAULT_EVERY_S = 2.5
OTHERS = {"engine_killed": 2, "engine_frozen": 2, "remote_killed": 1, "remote_frozen": 1, "told": 4}
ALL = OTHERS | {"kvtierd_killed": 1, "kvtierd_restarted": 1, "kvtierd_frozen": 1}
WINDOW_S = 8.0
GROWTH_MAX, SEEN_MAX, LONG_S = 1 * MIB, 2 * MIB, 1200.0  # an hour; in a short run; what is measured in a long one
NEW_DESCRIPTORS = 3  # what is opened when it is first needed
SETTLE_S = 2.0
LOOKUP_KEYS = 64
PROMPT = 80  # tokens


class Line(NamedTuple):
    what: str
    found: str
    limit: str
    is_good: bool


class Quiet(NamedTuple):
    """When nobody is connected."""

    sample: Sample
    descriptors: int  # but those of connections to the remote, which it keeps
    connections: int
    threads: Counter[str]  # by name


# --- what is measured --------------------------------------------------------------------------------------------


def memory_of(samples: Sequence[Sample], grown: int) -> tuple[Slope, Line]:
    """`grown`: bytes, from quiet to quiet. In a few minutes a slope of 1 MiB/h is not to be told from the last things that
    fill up; so there it must be surely more, and have grown visibly too. An hour's run is held to the limit."""
    slope = slope_of(medians([(sample.at, float(sample.anonymous)) for sample in samples], WINDOW_S))
    found = f"{slope.per_hour / MIB:+.2f} MiB/h ({slope.low / MIB:+.2f} to {slope.high / MIB:+.2f}), {grown / MIB:+.2f} MiB"
    is_long = samples[-1].at - samples[0].at >= LONG_S
    is_good = slope.per_hour < GROWTH_MAX or (not is_long and (slope.low < GROWTH_MAX or grown < SEEN_MAX))
    limit = "1 MiB/h" if is_long else "not surely over 1 MiB/h, or 2 MiB"
    return slope, Line("memory besides the arena grows by", found, limit, is_good)


def fill(node: Node) -> None:
    """kvtierd's records of decisions are as many as it keeps now. Else they would fill while it is measured."""
    with Engine(node.daemon.socket, f"filling {time.monotonic_ns()}", lend=1) as engine:
        keys = pack_keys(block_key(engine.welcome.secret, name) for name in names_of(0, 1))
        for number in range(KEPT + 100):
            request = f"filling {number}"
            engine.say(protocol.Begin(request, "session 0"))
            asked = protocol.Lookup(1, keys, len(keys) // KEY_BYTES, request, PROMPT)  # all but these: no remote is asked
            engine.ask(asked, answer=protocol.Found)
            engine.say(protocol.Release(1, 0), protocol.Outcome(request, outcome(PROMPT, 0)))


def quiet(node: Node) -> Quiet:
    node.close()
    time.sleep(SETTLE_S)
    pid = node.daemon.pid
    opened = [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()]
    connections = sum(name in tcp_sockets(pid) for name in opened)
    return Quiet(sample_of(pid), len(opened) - connections, connections, thread_names(pid))


def tcp_sockets(pid: int) -> set[str]:
    """Of its network namespace, named as links of descriptors name them."""
    lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]
    return {f"socket:[{line.split()[9]}]" for line in lines}


def thread_names(pid: int) -> Counter[str]:
    return Counter(file.read_text().strip() for file in Path(f"/proc/{pid}/task").glob("*/comm"))


# --- the accounts ------------------------------------------------------------------------------------------------


def recount(node: Node) -> dict[str, int]:
    """All blocks that there can be are asked for; nothing is read for it. How many are in RAM, how many only below."""
    found = {"cpu": 0, "below": 0}
    for model, size in sorted(set(MODELS)):
        with Engine(node.daemon.socket, f"counting {time.monotonic_ns()}", model=model, block_bytes=size, lend=1) as engine:
            names = sorted({name for session in range(SESSIONS) for name in names_of(session, TURNS)})
            for at in range(0, len(names), LOOKUP_KEYS):
                keys = pack_keys(block_key(engine.welcome.secret, name) for name in names[at : at + LOOKUP_KEYS])
                slots = offered(engine, keys)
                found["cpu"] += sum(slot < BELOW for slot in slots)
                found["below"] += sum(slot == BELOW for slot in slots)
    return found


def offered(engine: Engine, keys: bytes) -> list[int]:
    """The engine says that it has them itself, so nothing is read."""
    found = engine.ask(protocol.Lookup(1, keys, len(keys) // KEY_BYTES), answer=protocol.Found)
    engine.say(protocol.Release(1, 0))
    return unpack_slots(found.slots).tolist()


def accounts(node: Node) -> list[Line]:
    """What it says it has against what is there."""
    daemon, folder = node.daemon, node.folder / "nvme"
    tiers, found = daemon.snapshot()["tiers"], recount(node)
    said, there = tiers["cpu"]["blocks"], found["cpu"]
    lines = [Line("blocks in RAM, recounted", f"{there} of {said}", "all", said == there)]
    on_disk = sum(file.stat().st_blocks * 512 for file in folder.iterdir())
    said = daemon.snapshot()["tiers"]["nvme"]["disk_bytes"]
    lines.append(Line("bytes of the drives, by du", f"{on_disk:,} of {said:,}", "all", said == on_disk))
    assert daemon.terminate() == 0
    command = [Path(sys.executable).with_name("kvtier"), "verify", folder, "--json"]
    verified = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    bad = verified["corrupt"] + verified["unreadable"] + verified["bad_records"]
    lines.append(Line("blocks on the drives that are bad", f"{bad} of {verified['blocks']}", "0", bad == 0))
    daemon.start()
    nvme, found = daemon.snapshot()["tiers"]["nvme"], recount(node)
    said, there = (nvme["blocks"], nvme["used_bytes"]), (verified["blocks"], verified["bytes"])
    lines.append(Line("blocks, bytes on them, recounted", f"{there} of {said}", "all", said == there))
    below = found["below"] + found["cpu"]
    lines.append(Line("of them engines are offered", f"{below} of {nvme['blocks']}", "all", below == nvme["blocks"]))
    return lines


# --- the whole ---------------------------------------------------------------------------------------------------


def soak(node: Node, seconds: float, tell: Console) -> tuple[list[Line], dict[str, object]]:
    idle = sample_of(node.daemon.pid).threads
    node.open()
    for name, share, faults in (("first", FIRST, ALL), ("then", THEN, OTHERS)):
        tell.print(f"{name}: {seconds * share:.0f} s")
        node.live(seconds * share, faults, FAULT_EVERY_S)
        tell.print(f"  {dict(node.totals())}")
        fill(node)
    before = quiet(node)
    node.open()
    tell.print(f"measured: {seconds * (1 - FIRST - THEN):.0f} s")
    samples = node.live(seconds * (1 - FIRST - THEN), OTHERS, FAULT_EVERY_S)
    after = quiet(node)
    grown = after.sample.anonymous - before.sample.anonymous
    slope, memory = memory_of(samples, grown)
    counts = node.counts
    loads = f"{counts['wrong']} of {counts['loaded']:,} in {counts['requests']:,} requests"
    lines = [
        Line("loaded blocks that were wrong", loads, "0", not counts["wrong"] and counts["loaded"] > 0),
        memory,
        flat(
            "descriptors when nobody is connected",
            before.descriptors,
            after.descriptors,
            before.descriptors + NEW_DESCRIPTORS,
        ),
        flat("connections to the remote", before.connections, after.connections, CALLS_MAX),
        flat("threads", before.sample.threads, after.sample.threads, idle + CALLS_MAX),
        *accounts(node),
        Line(
            "faults of kvtierd", f"{node.daemon.said().count('has a fault')}", "0", "has a fault" not in node.daemon.said()
        ),
    ]
    facts = {"seconds": seconds, "faults": dict(node.events), "counts": dict(counts),
             "quiet_growth_mib": round(grown / MIB, 2), "new_threads": dict(after.threads - before.threads),
             "slope_mib_per_hour": [round(value / MIB, 3) for value in slope],
             "memory_mib": round(after.sample.anonymous / MIB, 1), "load": os.getloadavg()[0]}  # fmt: skip
    return lines, facts


def flat(what: str, before: int, after: int, most: int) -> Line:
    """Up to `most` there may be: a pool grows to what it needed at once, and stays."""
    return Line(what, f"{before}, then {after}", f"{most}", after <= most)


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description="Some minutes of a node's life, with faults.")
    parser.add_argument("--seconds", type=float, default=300.0, help="how long; an hour tells more of memory")
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--json", type=Path, metavar="FILE", help="what was found, for programs")
    given = parser.parse_args()
    tell = Console(stderr=True)
    tell.print(f"soak: {given.seconds:g} s, seed {given.seed}")
    with tempfile.TemporaryDirectory(prefix="kvtier-soak-") as folder, Node(Path(folder), given.seed) as node:
        lines, facts = soak(node, given.seconds, tell)
        if not all(line.is_good for line in lines):
            tell.print(node.daemon.said()[-4000:], markup=False)
    table = Table("", "found", "limit", "")
    for line in lines:
        table.add_row(line.what, line.found, line.limit, "ok" if line.is_good else "BAD")
    Console(width=120).print(table, facts)
    if given.json:
        given.json.write_text(json.dumps({**facts, "lines": [line._asdict() for line in lines], "seed": given.seed}))
    return 0 if all(line.is_good for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
