"""How much of what a raw client gets from the same server does a remote of kvtier get?

    python benchmarks/bench_remote.py [--json] [--seconds N] [--only NAME ...]

Written by the authors of kvtier. Each server is a real one, started here, on loopback. N: how long the rounds of one
server go on, 15 if not given; no less than 7 rounds.

In a round kvtier and each raw client (remote_clients.py) put and get the same blocks of 2 MiB, 1 and 8 at once, in an
order that changes. The limit is the client that is fastest on the median for that server, direction and number; a share
is a quotient of one round, the median over rounds counts.

    shares          server -> put_1, put_8, get_1, get_8
    gb_s            the same for kvtier; limit_gb_s and limit_by for the limit
    worst_share     the least of all shares
    links           link -> codec -> ratio; read_gb_s and write_gb_s of blocks; the same as shares of blocks as they are
                    (remote_links.py: links that are slower than memory, where frames arrive sooner)

Raw clients check nothing, wait for ever, and write values without kvtier's header; what they get lies in the caller's
memory, as with kvtier, but for obstore's and valkey's, which leave it in their own. Where kvtier loses: at S3 it copies
each block once more than its client does, on the way in and out, and that client signs what it sends, which raw_http has
done before the time; at Mooncake its client is a process of its own; a peer is a kvtierd, which takes and gives blocks
from its arena and checks them.

What this doesn't show: checksums and the envelope, which the tier makes of its arena; a network; a server on cores of
its own: with client and server on few cores, a round is as fast as both together.
"""

import argparse
import binascii
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bench_copy import machine
from mooncake_clients import mooncake
from peer_clients import peer
from remote.servers import LOOPBACK, Absent, Cluster, Redis, SeaweedFS, redis_program, valkey_program
from remote_clients import Client, KVTier, Obstore, ObstoreLoop, RawCluster, RawHttp, RawRedis, Threaded, ValkeyPy
from remote_links import LINKS, measure_link
from rich.console import Console
from rich.table import Table

from kvtier.tiers.remote import open_remote
from kvtier.tiers.remote.redis_cluster import SLOTS

BLOCK, BLOCKS = 2 << 20, 48
AT_ONCE = (1, 8)
ROUNDS_MIN = 7
BARS = {"worst_share": ">= 0.8"}

Clients = dict[str, Callable[[], Client]]
Cell = tuple[str, str, int]  # who, what, how many at once
NAMES = [f"{7:016x}/{number:032x}" for number in range(BLOCKS)]


# --- the servers -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def redis(folder: Path, program: Path, is_unix: bool) -> Iterator[Clients]:
    with Redis(folder, program) as server:
        where: str | tuple[str, int] = str(server.socket) if is_unix else (LOOPBACK, server.port)
        place = {"unix_socket_path": where} if isinstance(where, str) else {"host": LOOPBACK, "port": server.port}
        yield {
            "kvtier": lambda: KVTier(open_remote(server.unix_url if is_unix else server.url, {})),
            "raw_socket": lambda: Threaded(lambda: RawRedis(where)),
            "valkey_py": lambda: Threaded(lambda: ValkeyPy(**place)),
        }


@contextlib.contextmanager
def cluster(folder: Path, program: Path) -> Iterator[Clients]:
    with Cluster(folder, program) as servers:
        places = [(LOOPBACK, node.port) for node in servers.nodes]

        def place_of(name: str) -> int:
            return binascii.crc_hqx(name.encode(), 0) % SLOTS * len(places) // SLOTS

        yield {
            "kvtier": lambda: KVTier(open_remote(servers.url, {})),
            "raw_sockets": lambda: Threaded(lambda: RawCluster(places, place_of)),
        }


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[Clients]:
    from obstore.store import S3Store

    with SeaweedFS(folder) as server:
        objects = S3Store("kvtier", client_options={"allow_http": True}, **server.settings)  # type: ignore[arg-type]
        yield {
            "kvtier": lambda: KVTier(open_remote(server.url, server.settings)),
            "raw_http": lambda: Threaded(lambda: RawHttp(objects, NAMES)),
            "obstore": lambda: Threaded(lambda: Obstore(objects)),
            "obstore_loop": lambda: ObstoreLoop(objects),
        }


SERVERS: dict[str, Callable[[Path], contextlib.AbstractContextManager[Clients]]] = {
    "valkey_unix": lambda folder: redis(folder, valkey_program(), is_unix=True),
    "valkey_tcp": lambda folder: redis(folder, valkey_program(), is_unix=False),
    "redis_unix": lambda folder: redis(folder, redis_program(), is_unix=True),
    "valkey_cluster": lambda folder: cluster(folder, valkey_program()),
    "s3_seaweedfs": seaweedfs,
    "mooncake": mooncake,
    "peer": peer,
    "peer_tls": lambda folder: peer(folder, with_tls=True),
}


# --- rounds ------------------------------------------------------------------------------------------------------


class Shares:
    """Rounds of all clients of one server, and how fast each was in each of them."""

    def __init__(self, makers: Clients) -> None:
        self.clients = {name: make() for name, make in makers.items()}
        content = np.random.default_rng().bytes(BLOCK * BLOCKS)
        self._memory = np.frombuffer(bytearray(content), np.uint8).reshape(BLOCKS, BLOCK)
        self._blocks = [memoryview(row) for row in self._memory]
        self.speeds: dict[Cell, list[float]] = {}

    def run(self, seconds: float) -> int:
        self.round()  # makes connections
        self.speeds.clear()
        begun, number = time.monotonic(), 0
        while number < ROUNDS_MIN or time.monotonic() < begun + seconds:
            self.round()
            number += 1
        return number

    def round(self) -> None:
        for at_once in AT_ONCE:
            for what in ("put", "get"):
                for who, client in random.sample(sorted(self.clients.items()), len(self.clients)):
                    client.tidy()
                    move = getattr(client, what)
                    begun = time.perf_counter()
                    move(NAMES, self._blocks, at_once)
                    speed = BLOCK * BLOCKS / 1e9 / (time.perf_counter() - begun)
                    self.speeds.setdefault((who, what, at_once), []).append(speed)

    def outcome(self) -> dict[str, Any]:
        found: dict[str, Any] = {name: {} for name in ("shares", "spreads", "gb_s", "limit_gb_s", "limit_by")}
        for at_once in AT_ONCE:
            for what in ("put", "get"):
                speeds = {who: self.speeds[who, what, at_once] for who in self.clients}
                limit = max(speeds.keys() - {"kvtier"}, key=lambda who: statistics.median(speeds[who]))
                shares = [mine / of for mine, of in zip(speeds["kvtier"], speeds[limit], strict=True)]
                cell = f"{what}_{at_once}"
                found["shares"][cell] = round(statistics.median(shares), 3)
                found["spreads"][cell] = [round(min(shares), 3), round(max(shares), 3)]
                found["gb_s"][cell] = round(statistics.median(speeds["kvtier"]), 3)
                found["limit_gb_s"][cell] = round(statistics.median(speeds[limit]), 3)
                found["limit_by"][cell] = limit
        return found

    def close(self) -> None:
        for client in self.clients.values():
            client.close()


def measure(folder: Path, seconds: float, only: list[str]) -> dict[str, Any]:
    load = os.getloadavg()[0]
    outcomes, rounds, absent, links = {}, {}, {}, {}
    for name in only or (*SERVERS, *LINKS):
        print(f"... {name}", file=sys.stderr)
        if name in LINKS:
            links[name] = measure_link(LINKS[name], seconds)
            continue
        try:
            with SERVERS[name](folder / name) as makers:
                shares = Shares(makers)
                rounds[name] = shares.run(seconds)
                outcomes[name] = shares.outcome()
                shares.close()
        except Absent as reason:
            absent[name] = str(reason)
    gathered = {what: {name: found[what] for name, found in outcomes.items()} for what in next(iter(outcomes.values()), {})}
    worst = min((share for found in outcomes.values() for share in found["shares"].values()), default=None)
    return {
        "worst_share": worst,
        **gathered,
        "links": links,
        "rounds": rounds,
        "absent": absent,
        "load_average": round((load + os.getloadavg()[0]) / 2, 2),
        "machine": machine(),
    }


def print_table(outcome: dict[str, Any]) -> None:
    facts = outcome["machine"]
    table = Table("server", "what", "share", "spread", "GB/s", "limit", title=f"{facts['cpu']}, {facts['cores']} cores")
    for name, shares in outcome.get("shares", {}).items():
        for cell, share in shares.items():
            limit = f"{outcome['limit_gb_s'][name][cell]} ({outcome['limit_by'][name][cell]})"
            spread = " to ".join(map(str, outcome["spreads"][name][cell]))
            table.add_row(name, cell, str(share), spread, str(outcome["gb_s"][name][cell]), limit)
    table.add_row("all", "worst_share", str(outcome["worst_share"]), "", "", BARS["worst_share"])
    Console().print(table)
    frames = Table("link", "codec", "ratio", "read GB/s", "share", "write GB/s", "share", title="blocks over slower links")
    for name, found in outcome["links"].items():
        for codec, facts in found.items():
            if isinstance(facts, dict):
                columns = ("ratio", "read_gb_s", "read_share", "write_gb_s", "write_share")
                frames.add_row(name, codec, *(str(facts[column]) for column in columns))
    Console().print(frames)
    for name, reason in outcome["absent"].items():
        Console().print(f"{name}: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--seconds", type=float, default=15, help="how long the rounds of one server go on")
    parser.add_argument("--only", nargs="*", choices=[*SERVERS, *LINKS], help="these servers and links")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-remote-") as name:
        outcome = measure(Path(name), given.seconds, given.only or [])
    print(json.dumps(outcome)) if given.json else print_table(outcome)
    if not (outcome["rounds"] or outcome["links"]):
        sys.exit(3)


if __name__ == "__main__":
    main()
