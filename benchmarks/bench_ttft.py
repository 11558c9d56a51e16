"""How long until the first token: cold, from the engine's own prefix cache, from kvtier, from a remote beside a kvtierd
that has nothing else, from kvtier after a restart of the engine, and from kvtier's NVMe tier after a restart of both.

    python benchmarks/bench_ttft.py [--json]

Written by the authors of kvtier. Real vLLM on this machine's CPU and SmolLM2-135M-Instruct; each engine pinned to one
core. What it doesn't show: GPUs, where prefill is far cheaper and a copy crosses PCIe; large models; busy engines.
Where kvtier loses: `kvtier_over_engine_hit` is above 1, because the engine's own hit moves no bytes and waits for no
answer; `no_reuse_throughput_ratio` is below 1, because prompts that never repeat are saved for nothing.

Each ratio is between two things of the same run, in turn: hit and load of the same prompt, one pair a round; and the
same fresh prompts through an engine with and one without kvtier, A B B A. Medians, and min to max.

remote_s, in the same rounds: another engine, beside a kvtierd that has just started with empty RAM, no drives and the
remote (one Valkey or Redis on loopback) that a former kvtierd with the same root secret wrote the prompt to. It is that
kvtierd's first request for it; what its cost model decided and had predicted for both arms stands beside it.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import models
from demo import Daemon
from engine import Engine
from far_node import FarNode
from remote.servers import Absent, Redis, redis_or_valkey
from rich.console import Console
from rich.table import Table

PROMPT = 2000  # tokens
ROUNDS = 9  # of hit and load
FRESH_ROUNDS = 10  # of with and without, A B B A counts two
FRESH_PROMPTS, FRESH_TOKENS = 4, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    model = models.smollm2(models.cache_root())
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as name:
        folder = Path(name)
        daemon = Daemon(folder / "kvtierd.sock", folder / "kvtierd.log", folder / "nvme")
        try:
            result = measure(model, folder, daemon)
        finally:
            daemon.stop()
    if given.json:
        print(json.dumps(result))
    else:
        table = Table("what", "measured", "spread", title=f"{PROMPT} tokens, {result['dtype']}")
        for key, value in result.items():
            if not key.endswith("_spread"):
                spread = result.get(f"{key}_spread")
                table.add_row(key, str(value), f"{spread[0]} to {spread[1]}" if spread else "")
        Console().print(table)


def measure(model: Path, folder: Path, daemon: Daemon) -> dict[str, object]:
    dtype = models.fastest_dtype()

    def start(log: str, socket: Path | None) -> Engine:
        return _engine(model, socket, folder / log, dtype)

    _progress("starting an engine with kvtier and one without")
    engine, plain = start("with.log", daemon.socket), start("without.log", None)
    prompt = _tokens(1, PROMPT)
    _progress("cold, then hits and loads in turn")
    cold = engine.generate([prompt], 8)[0]
    answers, hits, loads = [], [], []
    with ExitStack() as ended:
        far, why_not = _far_node(ended, folder, prompt, lambda socket: start("far.log", socket))
        for _ in range(ROUNDS):
            hit = engine.generate([prompt], 8)[0]
            engine.reset()
            load = engine.generate([prompt], 8)[0]
            assert load.external_tokens == hit.cached_tokens == PROMPT // 128 * 128
            answers += [hit, load] + ([] if far is None else [far.first_request(prompt)])
            hits.append(hit.ttft)
            loads.append(load.ttft)
        from_remote = {"remote_s": None, "remote": why_not} if far is None else far.result()
    _progress("prompts that never repeat, with and without")
    ratios = _no_reuse(engine, plain)
    plain.stop()
    engine.stop()
    _progress("after an engine restart")
    engine = start("again.log", daemon.socket)
    again = engine.generate([prompt], 8)[0]
    assert again.external_tokens == PROMPT // 128 * 128
    engine.stop()
    _progress("after a restart of both: from disk")
    daemon.restart()
    engine = start("nvme.log", daemon.socket)
    nvme = engine.generate([prompt], 8)[0]
    assert nvme.external_tokens == PROMPT // 128 * 128
    engine.stop()
    answers += [again, nvme]
    pairs = [load / hit for hit, load in zip(hits, loads)]
    return {
        "cold_s": round(cold.ttft, 4),
        "engine_hit_s": round(statistics.median(hits), 4),
        "engine_hit_s_spread": _spread(hits),
        "kvtier_s": round(statistics.median(loads), 4),
        "kvtier_s_spread": _spread(loads),
        "after_restart_s": round(again.ttft, 4),
        "nvme_s": round(nvme.ttft, 4),
        **from_remote,
        "kvtier_over_engine_hit": round(statistics.median(pairs), 3),
        "kvtier_over_engine_hit_spread": _spread(pairs),
        "tokens_equal": all(a.tokens == answers[0].tokens for a in answers),
        "no_reuse_throughput_ratio": round(statistics.median(ratios), 3),
        "no_reuse_throughput_ratio_spread": _spread(ratios),
        "prompt_tokens": PROMPT,
        "dtype": dtype,
        "load_average": round(os.getloadavg()[0], 1),
    }


def _engine(model: Path, socket: Path | None, log: Path, dtype: str) -> Engine:
    """Beside the kvtierd on this socket, or without; its first request is over."""
    connector = None if socket is None else {
        "kv_connector": "KVTierConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"kvtier": {"socket": str(socket)}},
    }  # fmt: skip
    engine = Engine(model, connector=connector, log=log, dtype=dtype, multiprocess=True)
    engine.generate([_tokens(0, 40)], 2)
    return engine


def _far_node(
    ended: ExitStack, folder: Path, prompt: list[int], start_engine: Callable[[Path], Engine]
) -> tuple[FarNode | None, str]:
    """One whose remote has the prompt; or why there is none."""
    try:
        remote = ended.enter_context(Redis(folder / "remote", redis_or_valkey()))
    except Absent as reason:
        return None, str(reason)
    _progress("a node that has nothing but a remote")
    far = FarNode(remote, folder / "far", start_engine)
    ended.callback(far.stop)
    far.seed(prompt)
    return far, ""


def _no_reuse(engine: Engine, plain: Engine) -> list[float]:
    """Throughput with kvtier over throughput without, one ratio a round."""
    ratios = []
    for number in range(FRESH_ROUNDS):
        prompts = [_tokens(1000 + number * FRESH_PROMPTS + i, FRESH_TOKENS) for i in range(FRESH_PROMPTS)]
        order = (engine, plain) if number % 2 == 0 else (plain, engine)
        seconds = {id(e): _timed(e, prompts) for e in order}
        ratios.append(seconds[id(plain)] / seconds[id(engine)])
    return ratios


def _timed(engine: Engine, prompts: list[list[int]]) -> float:
    begun = time.monotonic()
    answers = engine.generate(prompts, 8)
    assert all(answer.cached_tokens == 0 for answer in answers)
    return time.monotonic() - begun


def _tokens(seed: int, length: int) -> list[int]:
    numbers = random.Random(seed)
    return [numbers.randrange(1000, 40000) for _ in range(length)]


def _spread(values: list[float]) -> list[float]:
    return [round(min(values), 4), round(max(values), 4)]


def _progress(text: str) -> None:
    print(f"... {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
