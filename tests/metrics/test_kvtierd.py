"""A live kvtierd's metrics and log, as programs read them."""

import contextlib
import json
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kvtierd import PATIENCE_S, Engine, KVTierd, eventually, observer_hello, some_keys
from metrics.prometheus import MISSING, PROMTOOL

from kvtier.metrics import FAMILIES
from kvtier.metrics_server import VISITS_MAX
from kvtier.stats import COUNTERS

KVTIERD, TIER_STATS = (str(Path(sys.executable).with_name(name)) for name in ("kvtierd", "tier-stats"))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KVTierd]:
    with KVTierd(tmp_path_factory.mktemp("metrics")) as running:
        eventually(lambda: "metrics are served" in running.said())
        yield running


def page(daemon: KVTierd, path: str = "/metrics") -> str:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(str(daemon.socket.with_name("metrics.sock")))
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: kvtierd\r\n\r\n".encode())
        head, _, body = b"".join(iter(lambda: sock.recv(65536), b"")).decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK\r\n"), head
    return body


def series_of(text: str) -> list[str]:
    return [line.rsplit(" ", 1)[0] for line in text.splitlines() if not line.startswith("#")]


def test_all_series_are_there_before_anybody_has_come(daemon):
    series = series_of(page(daemon))
    assert {family.name for family in FAMILIES} == {
        line.split()[2] for line in page(daemon).splitlines() if "# TYPE" in line
    }
    assert 'kvtier_transfer_duration_seconds_bucket{src="remote",dst="cpu",le="+Inf"}' in series
    with Engine(daemon.socket, "engine-77") as engine:
        keys = some_keys(2)
        engine.save(keys)
        engine.lookup(keys)
        engine.release(2)
        eventually(lambda: 'kvtier_transfer_blocks_total{src="cpu",dst="engine"} 2\n' in page(daemon))
        assert series_of(page(daemon)) == series
        assert "engine-77" not in page(daemon)


def test_its_socket_is_for_its_owner(daemon):
    assert stat.S_IMODE(daemon.socket.with_name("metrics.sock").stat().st_mode) == 0o600
    assert page(daemon, "/healthz") == "ok\n"


@pytest.mark.skipif(PROMTOOL is None, reason=f"promtool {MISSING}")
def test_promtool_finds_nothing_to_complain_of(daemon):
    done = subprocess.run(
        [str(PROMTOOL), "check", "metrics"], input=page(daemon), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_tier_stats_prints_the_same(daemon):
    done = subprocess.run(
        [TIER_STATS, "--prom", "--socket", str(daemon.socket)], capture_output=True, text=True, check=True
    )
    assert series_of(done.stdout) == series_of(page(daemon))


def test_whoever_asks_for_metrics_and_says_no_more_is_no_trouble_for_engines(daemon):
    silent = [socket.socket(socket.AF_UNIX) for _ in range(2 * VISITS_MAX)]
    for sock in silent:
        sock.connect(str(daemon.socket.with_name("metrics.sock")))
    with Engine(daemon.socket, "another engine") as engine:
        engine.save(some_keys(1, "one more"))
        assert engine.lookup(some_keys(1, "one more"))
    for sock in silent:
        sock.close()
    eventually(lambda: page(daemon, "/healthz"))


def test_a_snapshot_has_what_metrics_need(daemon):
    snapshot = daemon.snapshot()
    assert set(snapshot["counters"]) == set(COUNTERS)
    assert snapshot["process"]["resident_bytes"] > 0
    assert sum(snapshot["durations"]["tick"]["counts"]) > 0


def test_a_kvtierd_that_ends_takes_its_socket_away(tmp_path):
    with KVTierd(tmp_path, {"log.format": "json"}) as daemon:
        eventually(lambda: "metrics are served" in daemon.said())
        assert daemon.terminate() == 0
    assert not (tmp_path / "metrics.sock").exists()


def test_none_is_served_where_none_is_wanted(tmp_path):
    with KVTierd(tmp_path, {"metrics.listen": "none"}) as daemon:
        eventually(lambda: "serves 64 MiB" in daemon.said())
        assert not (tmp_path / "metrics.sock").exists()


# --- the log -----------------------------------------------------------------------------------------------------


def test_each_line_of_a_json_log_is_an_event(tmp_path):
    with KVTierd(tmp_path, {"log.format": "json", "log.level": "debug"}) as daemon:
        with Engine(daemon.socket, "an engine") as engine:
            engine.say(observer_hello())  # a second Hello: refused
            engine.end()
        eventually(lambda: "engine_is_gone" in daemon.said())
        assert daemon.terminate() == 0
    lines = [json.loads(line) for line in daemon.said().splitlines()]
    assert all({"ts", "level", "event", "message"} <= set(line) for line in lines)
    events = {line["event"]: line for line in lines}
    assert {"kvtierd_serves_of_ram_on", "metrics_are_served_on", "engine_is_gone", "kvtierd_ends"} <= set(events)
    assert events["engine_is_gone"]["engine"] == "an engine"
    assert [line["ts"] for line in lines] == sorted(line["ts"] for line in lines)


def test_what_keeps_it_from_starting_is_an_event_too(tmp_path):
    given = ["--set=log.format=json", f"--set=server.socket={tmp_path / ('x' * 200)}", "--set=cpu.capacity=32MiB"]
    done = subprocess.run([KVTIERD, *given], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 2
    last = json.loads(done.stderr.splitlines()[-1])
    assert (last["level"], last["event"]) == ("critical", "kvtierd_cant_start")
    assert "server.socket" in last["message"]


def test_a_format_that_there_is_not_is_named(tmp_path):
    done = subprocess.run(
        [KVTIERD, "--set=log.format=xml"], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 2
    assert done.stderr == "kvtierd: log.format = 'xml' is none of text, json\n"
