"""What bench_storage.py makes of its rounds, and what it says of who is absent; and that the stores keep what they get."""

import io
import json
import sys
from pathlib import Path

import bench_storage
import pytest
import storage_engines
from bench_storage import Cell, Contender, Process, Rounds

MIB = 1 << 20


class Scripted:
    """A process that answers: a get takes so many seconds a MiB, a put half of it."""

    def __init__(self, seconds: float, log: list[tuple[str, str]], name: str, dies_at: int = -1) -> None:
        self._seconds, self._log, self._name, self._left = seconds, log, name, dies_at

    def ask(self, what: str, size: int, *_: int) -> dict[str, float]:
        self._log.append((self._name, what))
        self._left -= 1
        if self._left == 0:
            raise bench_storage.Absent("out of room")
        seconds = self._seconds * (1.0 if what == "get" else 0.5) * size / MIB
        return {"bytes": size, "seconds": seconds, "cpu_s": seconds / 4}


def cells(**gib_s: list[float]) -> bench_storage.Cells:
    return {(name, 1, "put"): Cell(values, [0.0] * len(values)) for name, values in gib_s.items()}


def rounds_of(names: list[str], seconds: dict[str, float], dies_at: dict[str, int] | None = None):  # type: ignore[no-untyped-def]
    log: list[tuple[str, str]] = []
    processes = {name: Scripted(seconds[name], log, name, (dies_at or {}).get(name, -1)) for name in names}
    contenders = [Contender(name, name, "disk", sizes_mib=(2,)) for name in names]
    return Rounds(contenders, processes, "disk"), log  # type: ignore[arg-type]


# --- shares ------------------------------------------------------------------------------------------------------


def test_a_share_is_a_quotient_of_one_round_and_their_median_counts():
    found = bench_storage.shares(cells(memcpy=[10.0, 20.0, 40.0], kvtier=[9.0, 20.0, 20.0]), "memory")
    assert found == {"kvtier": {"1": {"put": {"median": 0.9, "min": 0.5, "max": 1.0}}}}


def test_the_limit_of_a_disk_is_who_is_faster_on_the_median():
    speeds = cells(raw_threads=[1.0, 9.0, 1.0], raw_io_uring=[2.0, 2.0, 2.0], kvtier_nvme=[1.0, 1.0, 1.0])
    assert bench_storage.limit_of(speeds, "disk", 1, "put").gib_s == [2.0, 2.0, 2.0]
    assert bench_storage.shares(speeds, "disk")["kvtier_nvme"]["1"]["put"]["median"] == 0.5


def test_where_the_kernel_refuses_io_uring_the_limit_is_the_other_one():
    assert bench_storage.limit_of(cells(raw_threads=[3.0]), "disk", 1, "put").gib_s == [3.0]


def test_tables_have_the_contenders_in_their_order_whoever_was_first_in_a_round():
    speeds = cells(mooncake=[1.0], lmcache=[1.0], kvtier=[1.0], memcpy=[1.0])
    assert list(bench_storage.shares(speeds, "memory")) == ["kvtier", "lmcache", "mooncake"]


def test_speed_and_processor_time_are_by_byte():
    cell = Cell()
    cell.add({"bytes": 1 << 30, "seconds": 0.5, "cpu_s": 2.147483648})
    assert (cell.gib_s, cell.cpu_s_per_gb) == ([2.0], [2.0])


# --- rounds ------------------------------------------------------------------------------------------------------


def test_contenders_take_turns_and_another_begins_each_round():
    names = ["a", "b", "c"]
    assert [bench_storage.rotated(names, turn) for turn in range(4)] == [
        ["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]
    ]  # fmt: skip


def test_a_round_has_all_put_before_any_gets_and_forgets_before_each_put():
    rounds, log = rounds_of(["a", "b"], {"a": 1.0, "b": 2.0})
    rounds.run(0.0, 1)
    one = [("clear", "put"), ("clear", "put"), ("get",), ("get",)]
    third = log[-6:]  # after two that don't count
    assert [what for _, what in third] == [step for steps in one for step in steps]
    assert [name for name, _ in third] == ["a", "a", "b", "b", "a", "b"]


def test_the_first_rounds_do_not_count_and_in_one_of_them_what_was_read_is_compared():
    rounds, log = rounds_of(["a"], {"a": 1.0})
    found = rounds.run(0.0, 3)
    assert {len(cell.gib_s) for cell in found.values()} == {3}
    assert [what for _, what in log] == ["clear", "put", "get", "check"] + ["clear", "put", "get"] * 4


def test_sizes_that_a_contender_does_not_have_are_not_asked_for():
    found = rounds_of(["a"], {"a": 1.0})[0].run(0.0, 1)
    assert set(found) == {("a", 2, "put"), ("a", 2, "get")}


def test_who_fails_in_one_round_is_absent_with_the_reason_and_the_others_go_on():
    rounds, log = rounds_of(["a", "b"], {"a": 1.0, "b": 2.0}, dies_at={"a": 12})
    found = rounds.run(0.0, 4)
    assert rounds.failed == {"a": "out of room"}
    assert {name for name, _, _ in found} == {"b"} and len(found["b", 2, "get"].gib_s) == 4
    assert sum(name == "a" for name, _ in log) == 12


# --- who is absent -----------------------------------------------------------------------------------------------


def test_without_its_environment_a_contender_is_absent_and_the_reason_says_what_to_do(tmp_path):
    missing = bench_storage.HERE.parent / ".venv-peers" / "nobody" / "bin" / "python"
    with bench_storage.started([Contender("lmcache", "LMCache", "memory", missing)], tmp_path) as (processes, facts):
        assert not processes
    reason = "no .venv-peers/nobody/bin/python: python benchmarks/compare/environments.py"
    assert facts == {"lmcache": {"absent": reason}}


def test_a_process_that_ends_is_absent_with_the_last_line_that_it_said(tmp_path):
    with pytest.raises(bench_storage.Absent, match="KeyError: 'nobody'"):
        Process(Contender("nobody", "nobody", "memory"), tmp_path / "nobody").hear()


def test_what_an_environment_lacks_is_the_reason(tmp_path):
    answers = io.StringIO()
    storage_engines.serve("lmcache", tmp_path, [], answers)
    assert json.loads(answers.getvalue()) == {"absent": "ModuleNotFoundError: No module named 'lmcache'"}


def test_who_is_absent_stands_among_the_engines_with_the_reason():
    row = bench_storage.row_of(Contender("x", "X", "disk"), {"absent": "it is not here"})
    assert row == {
        "name": "x", "title": "X", "medium": "disk", "version": "", "mode": "", "durable": "", "absent": "it is not here"
    }  # fmt: skip


def test_the_tables_show_shares_in_the_contenders_order_and_why_one_is_absent(capsys):
    memory = {
        (name, 2, step): Cell([2.0], [0.1]) for name in ("kvtier", "memcpy") for step, _ in bench_storage.STEPS["memory"]
    }
    rows = [
        bench_storage.row_of(Contender("kvtier", "kvtier, RAM tier", "memory"), {"mode": "as it comes"}),
        bench_storage.row_of(Contender("mooncake", "Mooncake Store", "memory"), {"absent": "OSError: no mooncake"}),
    ]
    facts = {"machine": {"cpu": "some", "cores": 2, "load_average": 0.5}, "seconds": 60.0, "engines": rows}
    bench_storage.print_tables(facts | {"memory": bench_storage.shares(memory, "memory"), "disk": {}, "limits": {}})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:5] for line in printed if " 2 MiB" in line] == [["kvtier,", "RAM", "tier", "2", "MiB"]]
    assert printed[-2:] == ["kvtier, RAM tier: as it comes", "Mooncake Store: OSError: no mooncake"]


# --- the stores --------------------------------------------------------------------------------------------------


def test_a_cell_is_asked_for_in_random_order_each_block_once():
    asked = list(storage_engines.requests(16 * MIB, at_once=4))
    assert [len(starts) for starts in asked] == [4, 4, 4, 4]
    assert sorted(start for starts in asked for start in starts) == list(range(0, storage_engines.CELL, 16 * MIB))


@pytest.mark.parametrize("name", ["memcpy", "kvtier"])
def test_a_store_in_memory_gives_back_what_was_put(name, tmp_path):
    store = storage_engines.made(name, tmp_path / name)
    try:
        for size in (16 * MIB, 2 * MIB):
            store.clear(size)
            store.put(size, 4)
            store.get(size, 1)
            store.check(size)
            with pytest.raises(AssertionError):
                store.check(size)  # nothing was read since
    finally:
        store.close()


def test_a_process_answers_with_what_it_moved_and_took(tmp_path):
    contender = Contender("memcpy", "memcpy", "memory", Path(sys.executable))
    with bench_storage.started([contender], tmp_path) as (processes, facts):
        assert facts["memcpy"]["absent"] is None
        processes["memcpy"].ask("clear", 16 * MIB)
        found = processes["memcpy"].ask("put", 16 * MIB, 4)
    assert found["bytes"] == storage_engines.CELL and found["seconds"] > 0 and found["cpu_s"] > 0
