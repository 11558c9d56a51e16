"""Files of the tier are damaged between a kill and the next start: kvtierd starts, and serves what is right or nothing."""

import random
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from arena_bytes import values_of
from damage import damage
from kvtierd import SLOT
from load import BATCH, Talker
from oracle import Model, Oracle
from series import FRAMED
from victim import Victim

from kvtier import observer

BLOCKS = {"one": 160, "two": 48}  # the second are frames: 22 MiB of 32 MiB
DAMAGES, DAMAGES_SHORT = 300, 10


def settings(tier: Path, seed: int = 0) -> dict[str, object]:
    return {"nvme.paths": tier, "nvme.capacity": "32 MiB", "nvme.io": ("io_uring", "threads")[seed % 2],
            "nvme.codec": "exp12", "nvme.endurance_dwpd": 1000, "nvme.stage_deadline_ms": 60_000}  # fmt: skip


@dataclass
class Outcome:
    """Of many damages."""

    all_there: int = 0
    some_there: int = 0
    none_there: int = 0
    refused: int = 0
    counted: Counter = field(default_factory=Counter)  # damages after which a counter was not 0

    def __str__(self) -> str:
        return (
            f"all blocks were there {self.all_there} times, some {self.some_there} times, none {self.none_there} times; "
            f"{self.refused} starts were refused; counted {dict(self.counted)}"
        )


def models() -> list[Model]:
    return [Model("one", SLOT), Model("two", FRAMED, values_of)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, dict[str, set[bytes]]]:
    """A folder that a killed daemon left, and what is in it."""
    folder = tmp_path_factory.mktemp("prepared")
    saved = {}
    with Victim(folder, settings(folder / "nvme")) as victim:
        for model in models():
            talker = Talker(victim, model, Oracle([model], True, 1 << 40))
            model.secret = talker.secret
            for _ in range(BLOCKS[model.name] // 16):
                talker.save_new(16)
                assert observer.flush(victim.socket, 30)
            saved[model.name] = model.saved
            talker.close()
        nvme = victim.snapshot()["tiers"]["nvme"]
        assert (nvme["blocks"], nvme["frames_written"]) == (sum(BLOCKS.values()), BLOCKS["two"])
    return folder / "nvme", saved


def start_damaged(folder: Path, prepared: tuple[Path, dict[str, set[bytes]]], seed: int, outcome: Outcome) -> None:
    """One damage to a copy, one start, all blocks asked for."""
    source, saved = prepared
    tier = folder / "nvme"
    shutil.copytree(source, tier)
    done = damage(tier, random.Random(seed))
    victim = Victim(folder, settings(tier, seed))
    try:
        if victim.begin() is None:
            assert victim.status == 2, (seed, done, victim.status, victim.said()[-2000:])
            assert "kvtierd: " in victim.said(), (seed, done, victim.said())
            outcome.refused += 1
            return
        served = ask_for_all(victim, saved, (seed, done))
        state = victim.snapshot()
        assert not victim.has_ended(), (seed, done, victim.status, victim.said()[-2000:])
        missing = sum(BLOCKS.values()) - served
        outcome.all_there += not missing
        outcome.some_there += 0 < served < sum(BLOCKS.values())
        outcome.none_there += not served
        note_counters(state["tiers"]["nvme"], missing, victim.said(), outcome, (seed, done))
    finally:
        victim.kill()
        victim.log.unlink(missing_ok=True)
        shutil.rmtree(tier)


def ask_for_all(victim: Victim, saved: dict[str, set[bytes]], damage_done: object) -> int:
    """How many of all blocks are served. Those of a namespace are asked for under their old keys."""
    oracle = Oracle(models(), True, 1 << 40)
    for model in oracle.models.values():
        talker = Talker(victim, model, oracle)
        keys = sorted(saved[model.name])
        for i in range(0, len(keys), BATCH):
            talker.ask(keys[i : i + BATCH])
            talker.hear_answers()
        talker.close()
    assert not oracle.wrong, (damage_done, oracle.wrong)
    return oracle.served


def note_counters(nvme: dict, missing: int, said: str, outcome: Outcome, damage_done: object) -> None:
    """What is missing was counted or set aside, and what was set aside was logged."""
    for name in ("corrupt_blocks", "bad_records", "quarantined", "failed_reads"):
        outcome.counted[name] += nvme[name] > 0
    new_store = "a new store begins empty" in said
    outcome.counted["new stores"] += new_store
    if nvme["quarantined"]:
        told = "is no good" in said and "it is kept as" in said
        assert told or "catalogue.mdb is missing" in said, (damage_done, said)
    accounted = nvme["corrupt_blocks"] + nvme["bad_records"]
    outcome.counted["silent losses"] += missing and not accounted and not nvme["quarantined"] and not new_store


def test_a_few_damages(tmp_path, prepared):
    outcome = Outcome()
    for seed in range(DAMAGES_SHORT):
        start_damaged(tmp_path, prepared, seed, outcome)
    print(outcome)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_300_damages(tmp_path, prepared):
    outcome = Outcome()
    for seed in range(DAMAGES):
        start_damaged(tmp_path, prepared, seed, outcome)
    print(outcome)
    assert outcome.some_there > 0 and outcome.none_there > 0
    assert outcome.counted["corrupt_blocks"] > 0 and outcome.counted["quarantined"] > 0
