"""What do metrics cost? Lookups a second of one engine, with and without somebody who asks kvtierd for metrics.

    python benchmarks/bench_metrics.py            a table
    python benchmarks/bench_metrics.py --json     one JSON object: lookups_per_s_alone, lookups_per_s_scraped,
                                                  overhead_percent, cpu_overhead_percent, their quartiles, cpu_ms_a_scrape,
                                                  observe_ns, machine

A kvtierd with a RAM and an NVMe tier, filled with blocks of many conversations. An engine asks for 32 keys after the other,
all hits, releases, and asks again. Rounds alternate, the order within a pair too: nobody asks for metrics, or a process of
its own asks once a second. Prometheus usually asks every 15 to 60 seconds: that costs a fifteenth to a sixtieth. Overheads
are medians over pairs of neighbours, so that what else the machine does meanwhile falls out: of the lookups in a second,
and of what kvtierd computes for a lookup, which a busy machine disturbs less.

cpu_ms_a_scrape is what kvtierd computes for one answer that it has to render, by its own clock of CPU time over many of
them: what the overhead must be where nothing disturbs (1 ms of every second is 0.1 percent of a core). observe_ns: what
counting one duration into its histogram takes.

Confessions. Written by the authors of kvtier. The histograms and counters themselves are always on: what they cost is
observe_ns a request or a transfer, not the difference of the rounds. On two shared noisy cores a round's lookups vary by
several percent, on a busy machine by tens: believe medians together with their quartiles, and cpu_ms_a_scrape.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kvtierd import Engine, KVTierd, eventually, some_keys

from kvtier import metrics_server
from kvtier.stats import Stats

PAIRS, ROUND_S = 15, 2.0
SCRAPE_S = 1.0
SCRAPES = 40  # of which each renders
CONVERSATIONS, BLOCKS = 200, 32
OBSERVED = 200_000
SCRAPER = """
import socket, sys, time
while True:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(sys.argv[1])
        sock.sendall(b"GET /metrics HTTP/1.1\\r\\n\\r\\n")
        while sock.recv(1 << 16):
            pass
    time.sleep(float(sys.argv[2]))
"""
GET = b"GET /metrics HTTP/1.1\r\nHost: kvtierd\r\n\r\n"


def scrape(path: Path) -> int:
    """Bytes of one answer."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(os.fspath(path))
        sock.sendall(GET)
        return sum(map(len, iter(lambda: sock.recv(1 << 16), b"")))


@contextlib.contextmanager
def scraper(path: Path) -> Iterator[Callable[[bool], None]]:
    """A process that asks, and a word to it whether it does."""
    command = [sys.executable, "-I", "-S", "-c", SCRAPER, str(path), str(SCRAPE_S)]
    with subprocess.Popen(command) as process:
        yield lambda asks: process.send_signal(signal.SIGCONT if asks else signal.SIGSTOP)
        process.kill()


def lookups(daemon: KVTierd, engine: Engine, keys: list[bytes]) -> tuple[float, float]:
    """How many in a second, and what kvtierd computes for one."""
    done, begun, before = 0, time.perf_counter(), cpu_s(daemon.pid)
    while (took := time.perf_counter() - begun) < ROUND_S:
        engine.lookup(keys[done % len(keys)])
        engine.release(BLOCKS)
        done += 1
    return done / took, (cpu_s(daemon.pid) - before) / done


def cpu_s(pid: int) -> float:
    """That a process's threads have computed."""
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def cpu_ms_a_scrape(daemon: KVTierd, path: Path) -> float:
    before = cpu_s(daemon.pid)
    for _ in range(SCRAPES):
        scrape(path)
        time.sleep(metrics_server.RENDERED_S)
    spent = cpu_s(daemon.pid) - before
    before = cpu_s(daemon.pid)
    time.sleep(SCRAPES * metrics_server.RENDERED_S)
    return (spent - (cpu_s(daemon.pid) - before)) * 1e3 / SCRAPES


def observe_ns() -> float:
    stats = Stats()
    begun = time.perf_counter()
    for _ in range(OBSERVED):
        stats.observe("answer", 0.0003)
    return (time.perf_counter() - begun) * 1e9 / OBSERVED


def measure(pairs: int) -> dict[str, object]:
    rates: dict[bool, list[float]] = {False: [], True: []}
    overhead, cpu_overhead = [], []
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as running:
        folder = Path(name)
        settings = {"cpu.capacity": "512 MiB", "nvme.paths": folder / "nvme", "nvme.capacity": "512 MiB"}
        with KVTierd(folder, settings) as daemon, Engine(daemon.socket, lend=64) as engine:
            path = folder / "metrics.sock"
            eventually(path.exists)
            conversations = [some_keys(BLOCKS, f"conversation {i}") for i in range(CONVERSATIONS)]
            for keys in conversations:
                while len(engine.lent) < BLOCKS:
                    engine.lookup(b"")  # hears what was lent meanwhile
                    engine.release()
                engine.save(keys)
            asks = running.enter_context(scraper(path))
            lookups(daemon, engine, conversations)
            for pair in range(pairs):
                cpu = {}
                for does in (bool(pair % 2), not pair % 2):
                    asks(does)
                    rate, cpu[does] = lookups(daemon, engine, conversations)
                    rates[does].append(rate)
                overhead.append(100 * (1 - rates[True][-1] / rates[False][-1]))
                cpu_overhead.append(100 * (cpu[True] / cpu[False] - 1))
            running.close()
            size, cpu_ms = scrape(path), cpu_ms_a_scrape(daemon, path)
    return {
        "lookups_per_s_alone": round(statistics.median(rates[False])),
        "lookups_per_s_scraped": round(statistics.median(rates[True])),
        "overhead_percent": round(statistics.median(overhead), 2),
        "overhead_percent_quartiles": quartiles(overhead),
        "cpu_overhead_percent": round(statistics.median(cpu_overhead), 2),
        "cpu_overhead_percent_quartiles": quartiles(cpu_overhead),
        "pairs": pairs,
        "page_bytes": size,
        "cpu_ms_a_scrape": round(cpu_ms, 2),
        "cpu_percent_at_one_a_second": round(cpu_ms / 10 / SCRAPE_S, 3),
        "observe_ns": round(observe_ns()),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0]},
    }


def quartiles(values: list[float]) -> list[float]:
    low, _, high = statistics.quantiles(values, n=4)
    return [round(low, 2), round(high, 2)]


def main() -> None:
    parser = argparse.ArgumentParser(description="What metrics cost.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    given = parser.parse_args()
    found = measure(given.pairs)
    if given.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:<30} {value}")


if __name__ == "__main__":
    main()
