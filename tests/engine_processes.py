"""Engines that are real processes, with the real clients and copiers: engine_process.py. A worker's copy lasts until the
test lets it finish, so nothing depends on how fast the machine is."""

import contextlib
import json
import selectors
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from kvtierd import PATIENCE_S, Engine, KVTierd, Worker, some_keys

from kvtier import _native
from kvtier.block import SLOT_UNIT, unpack_slots
from kvtier.protocol import Lend

PROGRAM = Path(__file__).with_name("daemon") / "engine_process.py"
SLOT_BYTES = 1 << 20
UNITS = SLOT_BYTES // SLOT_UNIT
ARENA_SLOTS = 32  # one engine may hold half of them
OLD, NEW = 7, 9  # what the engine that dies writes, and the one that wants its slots


class Process:
    """One process of an engine, and what it tells."""

    def __init__(self, role: str, daemon: KVTierd, engine: str, *numbers: int) -> None:
        command = [sys.executable, str(PROGRAM), role, str(daemon.socket), engine, *map(str, numbers)]
        # Unbuffered: what select sees is all there is.
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.process.stdout, selectors.EVENT_READ)

    def command(self, *words: object) -> None:
        self.process.stdin.write(" ".join(map(str, words)).encode() + b"\n")

    def hear(self, name: str) -> Any:
        """The value of the next thing of this name that it tells."""
        while True:
            assert self._selector.select(PATIENCE_S), f"the process never told {name}"
            line = self.process.stdout.readline()
            assert line, f"the process ended before it told {name}"
            if name in (told := json.loads(line)):
                return told[name]

    def kill(self) -> None:
        """kill -9; returns when it is gone."""
        self.process.kill()
        self.process.wait()
        self._selector.close()
        self.process.stdin.close()
        self.process.stdout.close()


class EngineProcesses:
    """A scheduler and a worker: up, with blocks saved, a lease held, slots lent."""

    def __init__(self, daemon: KVTierd, name: str, lend: int = 8, by_gpu: bool = False) -> None:
        self.name = name
        self.worker = Process("worker", daemon, name, SLOT_BYTES, int(by_gpu))
        self.scheduler = Process("scheduler", daemon, name, SLOT_BYTES, lend)
        while not self.scheduler.hear("ready"):
            pass
        self.generation = self.worker.hear("generation")

    def save_and_lease(self, n: int) -> list[int]:
        """Blocks that it saved and now holds a lease on."""
        self.scheduler.command("save", n)
        saved = self.scheduler.hear("saved")
        self.scheduler.command("lease", n)
        assert self.scheduler.hear("leased") == saved
        return saved

    def copy_into_lent(self) -> list[int]:
        """The worker fills every slot that is still lent, until it is told to finish."""
        self.scheduler.command("borrow", ARENA_SLOTS)
        slots = self.scheduler.hear("borrowed")
        self.worker.command("copy", OLD, *slots)
        assert self.worker.hear("copying") == slots
        return slots

    def kill(self) -> None:
        self.scheduler.kill()
        self.worker.kill()


def bytes_of(arena: np.ndarray, slot: int) -> np.ndarray:
    return arena[slot * SLOT_UNIT : slot * SLOT_UNIT + SLOT_BYTES]


class Hungry:
    """Another engine that wants the whole arena: it fills whatever it is lent and asks for more."""

    def __init__(self, daemon: KVTierd, stack: contextlib.ExitStack) -> None:
        self.scheduler = stack.enter_context(Engine(daemon.socket, "hungry", block_bytes=SLOT_BYTES, lend=ARENA_SLOTS))
        worker = stack.enter_context(Worker(daemon.socket, "hungry"))
        arena = stack.enter_context(_native.Arena.attach(worker.fds[0], ARENA_SLOTS * SLOT_BYTES))
        self.memory = arena.view()
        self.got: set[int] = set()
        self.meals = 0

    def eat(self) -> set[int]:
        """Fills and saves what is lent now and takes what comes for it. Returns all that it ever got."""
        for slot in self.scheduler.lent:
            bytes_of(self.memory, slot)[:] = NEW
        self.got.update(self.scheduler.lent)
        self.meals += 1
        self.scheduler.save(some_keys(len(self.scheduler.lent), f"meal {self.meals}"))
        while not self.scheduler.lent:
            self.scheduler.lent = unpack_slots(self.scheduler.hear(Lend).slots).tolist()
        return self.got

    def spoiled(self) -> list[int]:
        """Slots of its own that somebody else has written."""
        return [slot for slot in self.got if (bytes_of(self.memory, slot) != NEW).any()]
