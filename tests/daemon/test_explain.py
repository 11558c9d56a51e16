"""kvtier explain and kvtier calibrate: what they say to people, to scripts, and when there is nothing to say."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kvtierd import PATIENCE_S, Engine, KVTierd, eventually, some_keys

from kvtier import protocol
from kvtier.calibration import SPARE_S
from kvtier.cli import calibrate, explain
from kvtier.cost import Candidate, Pressure, choose
from kvtier.decision import OUTCOME, REASONS, Ask, Decision
from kvtier.decision_log import DecisionLog, line_of, read_last
from kvtier.errors import ConfigError, DaemonError
from kvtier.estimators import Prefill

AT = 1_700_000_000.0
PREFILL = Prefill(0.008, 26e-6, 0.6e-9, 8192, steps=132)
OUTCOME_US = (215_300, 12_000, 61_000, 31_000, 13_000, 512, 12_288, 200)

Shown = Callable[..., str]


def decision(request: str = "cmpl-1", **changed: object) -> Decision:
    """12,288 tokens matched on two tiers, and were fetched."""
    ask = Ask(request, prompt_tokens=13_000, resident_tokens=512)
    pressure = Pressure(0.015, 2.5, 0.4, 3)
    found = [Candidate(0, 0.0, ""), Candidate(8192, 0.04, "cpu"), Candidate(12_288, 0.09, "nvme")]
    made = Decision("llama", ask, "decide", AT, {"cpu": 8192, "nvme": 4096}, calibrated=True)
    made.estimates = choose(PREFILL, 512, 13_000, found, pressure)
    made.chosen, made.answered_at = made.estimates[0], AT + 0.08
    made.offered, made.offered_tokens = dict(made.matched), 12_288
    made.actual, made.gain_s = dict(zip(OUTCOME, OUTCOME_US)), 0.412
    for name, value in changed.items():
        setattr(made, name, value)
    return made


def record(request: str = "cmpl-1", **changed: object) -> dict[str, Any]:
    return decision(request, **changed).record(0.0)


def missed(reason: str, detail: str = "", **changed: object) -> dict[str, Any]:
    return record(reason=reason, detail=detail, offered={}, offered_tokens=0, actual=None, **changed)


@pytest.fixture
def shown(capsys) -> Shown:
    """What a command prints."""

    def run(command: Any, *words: object) -> str:
        command.run(parsed(command, *words))
        return "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())

    return run


def parsed(command: Any, *words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(dest="command"))
    return parser.parse_args([command.__name__.rpartition(".")[2], *map(str, words)])


@pytest.fixture
def log(tmp_path) -> Callable[..., Path]:
    """The folder of a log that holds these records."""

    def written(*records: dict[str, Any]) -> Path:
        made = DecisionLog(tmp_path / "log", 1024**2)
        for one in records:
            made.add(one)
        made.flush()
        return tmp_path / "log"

    return written


def rows(text: str) -> dict[str, list[str]]:
    """The words of each line, by its first word."""
    return {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}


# --- one decision --------------------------------------------------------------------------------------------


def test_a_page_shows_what_matched_and_what_was_offered_by_tier(shown, log):
    said = rows(shown(explain, "--log", log(record())))
    assert said["request"][0] == "cmpl-1" and "llama" in said["request"]
    assert said["tokens"] == ["all", "cpu", "nvme"]
    assert said["prompt"] == ["13,000"]
    assert said["resident"][0] == "512"
    assert said["matched"][:3] == ["12,288", "8,192", "4,096"]
    assert said["offered"][:3] == ["12,288", "8,192", "4,096"]


def test_the_arm_that_was_taken_is_compared_and_the_other_one_marked_as_estimated(shown, log):
    text = shown(explain, "--log", log(record()))
    of_fetch, of_computing = decision().fetch, decision().without
    said = rows(text)
    assert said["fetch"][:3] == [f"{of_fetch.ttft_s * 1e3:.1f}", "215.3", "taken:"]
    (computed,) = [line for line in text.splitlines() if line.startswith("compute it all")]
    assert f"{of_computing.ttft_s * 1e3:.1f}" in computed and computed.endswith("not taken: no more than an estimate")
    assert [said[part][0] for part in ("wait", "staged")] == ["12.0", "80.0"]
    assert said["load"][:2] == ["90.0", "61.0"] and said["prefill"][1] == "31.0"
    assert "12,288 tokens were not computed; that saved the engine 412.0 ms, net of its cost" in text


def test_it_says_where_frames_lay_and_how_much_smaller_they_are(shown, log):
    text = shown(explain, "--log", log(record(frames={"nvme": [512 * 1024**2, 390 * 1024**2]})))
    assert "nvme: a codec made 512 MiB of blocks into frames of 390 MiB, 1.31 times smaller" in text
    assert "codec" not in shown(explain, "--log", log(record()))


def test_it_says_what_was_assumed(shown, log):
    text = shown(explain, "--log", log(record()))
    assert "8 ms a step of 8,192 tokens + 26 us a token + 0.6 ns a pair" in text
    assert "learnt from 132 steps" in text
    for words, value in (
        ("work of the engine ahead of it", "15.0 ms"),
        ("requests that arrive", "2.5 a second"),
        ("the engine is busy", "40.0% of the time"),
    ):
        (line,) = [line for line in text.splitlines() if line.startswith(words)]
        assert line.split()[-len(value.split()) :] == value.split()


def test_the_remote_stands_behind_the_drives(shown, log):
    matched = {"cpu": 8192, "nvme": 2048, "remote": 2048}
    links = {"remote_latency_us": 1500, "remote_bytes_per_s": 2_500_000_000}
    text = shown(explain, "--log", log(record(matched=matched, offered=matched, links=links, queued={"remote": 2**20})))
    assert rows(text)["tokens"] == ["all", "cpu", "nvme", "remote"]
    assert rows(text)["matched"][:4] == ["12,288", "8,192", "2,048", "2,048"]
    for words, value in (
        ("latency, remote to arena", "1.5 ms"),
        ("bandwidth, remote to arena", "2.5 GB/s"),
        ("reads of the remote ahead of it", "1 MiB"),
    ):
        (line,) = [line for line in text.splitlines() if line.startswith(words)]
        assert line.split()[-2:] == value.split()


def test_assumptions_that_the_page_knows_nothing_of_are_shown_all_the_same(shown, log):
    changed = record()
    changed["assumed"] |= {"tape_bytes_per_s": 2_500_000_000, "tape_queued_bytes": 3 * 1024**2, "odd": "x"}
    said = rows(shown(explain, "--log", log(changed)))
    assert said["tape_bytes_per_s"] == ["2.5", "GB/s"]
    assert said["tape_queued_bytes"] == ["3", "MiB"]
    assert said["odd"] == ["x"]


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_of_a_miss_is_said_in_words_with_a_cure(shown, log, reason):
    text = shown(explain, "--log", log(missed(reason, "a detail")))
    assert f"why not more: {REASONS[reason]} (a detail)" in text
    assert f"what to do:   {explain.CURES[reason]}" in text
    assert "0 of 12,288 matched tokens" in text


def test_there_is_a_cure_for_each_reason_and_no_other():
    assert set(explain.CURES) == set(REASONS)


def test_a_request_that_still_runs_has_no_actual_time(shown, log):
    text = shown(explain, "--log", log(record(actual=None, answered_at=None)))
    assert "taken; how it ended is not known" in text


def test_before_the_engine_is_known_the_page_says_so(shown, log):
    assert "a floor and a deadline decide" in shown(explain, "--log", log(record(calibrated=False)))


def test_a_miss_of_all_leaves_nothing_to_compare(shown, log):
    text = shown(explain, "--log", log(missed("never_stored", matched={}, estimates=(), chosen=None)))
    assert "0 of 0 matched tokens" in text and "assumed" not in text


def test_shadow_and_always_are_said(shown, log):
    assert "cost.mode is shadow: nothing is loaded" in shown(explain, "--log", log(record(mode="shadow")))
    assert "cost.mode is always: nothing was weighed" in shown(explain, "--log", log(record(mode="always")))


def test_what_the_wrong_arm_cost_is_said(shown, log):
    assert "the other arm would have been 33.0 ms faster" in shown(explain, "--log", log(record(regret_s=0.033)))


def test_a_request_id_is_never_more_than_a_name(shown, log):
    text = shown(explain, "--log", log(record("[red]x[/red]:smile:\x1b[2J\n\rforged line")))
    assert "[red]x[/red]:smile:?[2J??forged line" in text
    assert "\x1b" not in text and not any(line.startswith("forged") for line in text.splitlines())


# --- several, and for scripts --------------------------------------------------------------------------------


def test_the_last_ones_stand_one_a_line_newest_last(shown, log):
    folder = log(*(record(f"cmpl-{n}") for n in range(5)), missed("too_dear"))
    lines = shown(explain, "last", "--n", 3, "--log", folder).splitlines()
    assert [line.split()[1] for line in lines[1:4]] == ["cmpl-3", "cmpl-4", "cmpl-1"]
    assert lines[1].split()[2:6] == ["13,000", "512", "12,288", "12,288"]
    taken = [line.split()[6:8] for line in lines[1:4]]
    assert [[arm.endswith("*") for arm in arms] for arms in taken] == [[True, False], [True, False], [False, True]]
    assert lines[3].endswith("too_dear")


def test_json_is_an_array_of_the_records(shown, log):
    folder = log(record("a"), record("b"), record("a", regret_s=0.5))
    assert json.loads(shown(explain, "--json", "--log", folder)) == [record("a", regret_s=0.5)]
    assert json.loads(shown(explain, "a", "--n", 9, "--json", "--log", folder)) == [record("a"), record("a", regret_s=0.5)]


def test_a_request_is_found_by_its_id(shown, log):
    folder = log(record("a"), record("b"))
    assert rows(shown(explain, "a", "--log", folder))["request"][0] == "a"


def test_an_unknown_request_is_an_error_that_says_where_to_look(log):
    with pytest.raises(DaemonError, match=r"no decision is known of request 'nobody'.*cost\.state: see --log"):
        explain.run(parsed(explain, "nobody", "--log", log(record())))


def test_before_the_first_decision_there_is_an_error_too(tmp_path):
    with pytest.raises(DaemonError, match="no decision was made yet"):
        explain.run(parsed(explain, "--log", tmp_path))


# --- with a daemon -------------------------------------------------------------------------------------------


def ask(engine: Engine, request: str, keys: bytes) -> None:
    """A request of an engine, and its first token."""
    lookup = protocol.Lookup(1, keys, request=request, prompt_tokens=1000)
    engine.ask(lookup, answer=protocol.Found)
    engine.say(protocol.Release(1, 0), protocol.Outcome(request, dict(zip(OUTCOME, OUTCOME_US))))


def test_a_daemon_explains_what_it_decided_and_logs_it(tmp_path, shown):
    with KVTierd(tmp_path, {"cost.mode": "always"}) as daemon, Engine(daemon.socket) as engine:
        with pytest.raises(DaemonError, match="no decision was made yet"):
            explain.run(parsed(explain, "--socket", daemon.socket))
        engine.save(some_keys(3))
        ask(engine, "cmpl-1", some_keys(4))
        (said,) = eventually(lambda: ended(shown, daemon))
        logged = eventually(lambda: read_last(tmp_path / "state", 9))
        text = shown(explain, "cmpl-1", "--socket", daemon.socket)
        with pytest.raises(DaemonError, match="no decision is known of request 'cmpl-2'"):
            explain.run(parsed(explain, "cmpl-2", "--socket", daemon.socket))
    assert said["request"] == "cmpl-1" and said["matched"]["cpu"] == said["offered_tokens"] == 48
    assert logged == [said]
    assert "why not more: no engine has saved these tokens here" in text


def ended(shown: Shown, daemon: KVTierd) -> list[dict[str, Any]]:
    """Decisions whose outcome is known."""
    found = json.loads(shown(explain, "last", "--n", 9, "--json", "--socket", daemon.socket))
    return [one for one in found if one["actual"] is not None]


def test_without_a_daemon_there_is_an_error_that_names_the_cure(tmp_path):
    with pytest.raises(DaemonError, match="start kvtierd, or name its socket"):
        explain.run(parsed(explain, "--socket", tmp_path / "nobody.sock"))


def test_a_daemon_measures_beside_its_first_requests_and_keeps_it(tmp_path):
    settings = {"nvme.paths": tmp_path / "nvme", "nvme.capacity": "32 MiB", "cost.calibrate_s": 0.2}
    kept = tmp_path / "state" / "calibration.json"
    with KVTierd(tmp_path, settings) as daemon, Engine(daemon.socket) as engine:
        engine.save(some_keys(1))
        eventually(kept.exists, within=SPARE_S)
        assert not (tmp_path / "nvme" / "calibrating").exists()
    (known,) = json.loads(kept.read_text())["machines"]
    assert known["at"] > 0 and set(known["links"]) == {"cpu", "nvme"}


def test_the_installed_command_knows_both():
    command = str(Path(sys.executable).with_name("kvtier"))
    for words, code, said in (
        (["explain", "--socket", "/nowhere/kvtierd.sock"], 1, "kvtier: no kvtierd on /nowhere/kvtierd.sock"),
        (["calibrate", "--config", "/nowhere/kvtier.toml"], 2, "kvtier: /nowhere/kvtier.toml: No such file or directory"),
    ):
        ended = subprocess.run([command, *words], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert (ended.returncode, ended.stdout) == (code, "") and ended.stderr.startswith(said)


# --- kvtier calibrate ----------------------------------------------------------------------------------------


def test_calibrate_measures_shows_and_keeps(tmp_path, shown):
    (tmp_path / "drive").mkdir()
    given = ["--seconds", 0.3, "--nvme", tmp_path / "drive", "--state", tmp_path / "state"]
    said = rows(shown(calibrate, *given))
    assert float(said["cpu"][1]) > 0 and float(said["nvme"][1]) > 0
    assert len(said[str(tmp_path / "drive")]) >= 4
    found = json.loads(shown(calibrate, *given, "--json"))
    assert found["kept_in"] == str(tmp_path / "state") and found["links"]["nvme"]["bytes_per_s"] > 0
    (kept,) = json.loads((tmp_path / "state" / "calibration.json").read_text())["machines"]
    assert kept["at"] == found["at"]
    assert list((tmp_path / "drive").iterdir()) == []


def test_calibrate_takes_drives_and_folder_from_the_settings_of_kvtierd(tmp_path, shown):
    (tmp_path / "drive").mkdir()
    settings = tmp_path / "kvtier.toml"
    settings.write_text(f'[nvme]\npaths = "{tmp_path}/drive"\n[cost]\nstate = "{tmp_path}/state"\n')
    found = json.loads(shown(calibrate, "--seconds", 0.2, "--config", settings, "--json"))
    assert [drive["path"] for drive in found["drives"]] == [f"{tmp_path}/drive"]
    assert (tmp_path / "state" / "calibration.json").is_file()


def test_calibrate_says_what_it_could_not_measure_or_keep(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    given = ["--seconds", 0.2, "--nvme", tmp_path / "nowhere", "--state", tmp_path / "file"]
    with pytest.raises(DaemonError, match="File exists; it is not kept: name another folder with --state"):
        calibrate.run(parsed(calibrate, *given))
    assert f"{tmp_path}/nowhere is not measured: No such file or directory" in capsys.readouterr().out


def test_calibrate_refuses_settings_that_are_wrong(tmp_path):
    (tmp_path / "kvtier.toml").write_text("[nvme]\npath = 1\n")
    with pytest.raises(ConfigError, match=r"did you mean 'nvme.paths'"):
        calibrate.run(parsed(calibrate, "--config", tmp_path / "kvtier.toml"))
    with pytest.raises(ConfigError, match="No such file"):
        calibrate.run(parsed(calibrate, "--config", tmp_path / "nowhere.toml"))


@pytest.mark.parametrize("words", [["--seconds", "0"], ["--seconds", "soon"], ["--config", "a", "--nvme", "b"]])
def test_wrong_usage_of_calibrate_ends_with_2(words):
    with pytest.raises(SystemExit) as ended:
        parsed(calibrate, *words)
    assert ended.value.code == 2


def test_a_record_on_one_line_stays_one_line():
    assert "\n" not in line_of([record("a\nb")])
