"""What this kvtierd knows from experience, its own and that of those before it; and the log of its decisions.

Owned by the daemon's event loop. The disk is written by a thread, one write at a time: a disk that hangs delays only
what would be written next, and keeps no daemon from its end.
"""

import asyncio
import contextlib
import logging
import threading
from pathlib import Path

from kvtier import calibration
from kvtier.config import Config
from kvtier.deciding import ENGINE_LATENCY_S
from kvtier.decision_log import DecisionLog, state_folder
from kvtier.estimators import Link
from kvtier.store import BlockStore
from kvtier.tiers.remote import shown

log = logging.getLogger("kvtierd")

WRITE_S = 1.0  # between writes of the decision log
SAVE_S = 600.0  # between saves of what was learnt: an engine that starts again is as fast as before
END_S = 5.0  # for the last write
REMOTE_SAMPLES_MIN = 10  # of its link, before it is worth remembering
OBSERVED_TIMES, OBSERVED_BYTES = 4, (64 * 1024, 64 * 1024**2)  # what a measured link is believed


class Experience:
    def __init__(self, settings: Config, paths: list[Path]) -> None:
        self.folder = state_folder(settings.text("cost.state"))
        self._settings, self._paths = settings, paths
        self._known = calibration.load(self.folder, calibration.machine_of(paths))
        log_bytes = settings.count("cost.log_bytes")
        self._log = DecisionLog(self.folder, log_bytes) if log_bytes else None
        self._namespaces: dict[str, bytes] = {}  # engine -> digest
        self._remote = ""  # its name
        self._work: asyncio.Future[None] | None = None
        self._measuring: asyncio.Task[None] | None = None
        self._write_at = self._save_at = 0.0

    def drives_link(self) -> Link:
        """As they were when they were measured."""
        speed = self._known.link(calibration.NVME)
        return Link(speed.latency_s, speed.bytes_per_s)

    def remote_link(self, url: str) -> Link:
        """As this remote was when it was used last."""
        self._remote = shown(url)
        return Link.from_counts(self._known.remote(self._remote))

    def begin(self, store: BlockStore, now: float) -> None:
        """The daemon serves: from here on there is time to measure what was never measured."""
        self._store = store
        self._believe(self._known)
        self._write_at, self._save_at = now + WRITE_S, now + SAVE_S
        if self._settings.number("cost.calibrate_s") and not self._known.is_measured:
            self._measuring = asyncio.create_task(self._measure())

    def joined(self, engine: str, namespace: bytes) -> None:
        """An engine computes as fast as those of its namespace did here, until it says otherwise."""
        self._namespaces[engine] = namespace
        counts = self._known.prefills.get(namespace.hex())
        if counts is not None:
            self._store.decisions.pace(engine, counts)

    def left(self, engine: str) -> None:
        """To be told before the store is."""
        namespace = self._namespaces.pop(engine, None)
        if namespace is None:
            return  # it was the former kvtierd's, and said nothing to this one
        prefill = self._store.decisions.prefill(engine)
        if prefill.is_calibrated:
            self._known.remember_prefill(namespace.hex(), prefill.to_counts())

    def tick(self, now: float) -> None:
        if now >= self._write_at and (self._work is None or self._work.done()):
            self._write_at = now + WRITE_S
            for line in self._store.decisions.guard_changes():
                log.warning("%s", line)
            saves = now >= self._save_at
            if saves:
                self._save_at = now + SAVE_S
                self._remember_remote()
            if self._gather() or saves:
                self._work = self._write_beside(saves)

    async def end(self) -> None:
        """All that is known is on disk."""
        for engine in list(self._namespaces):
            self.left(engine)
        self._remember_remote()
        if self._measuring is not None:
            self._measuring.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                if self._work is not None:
                    await self._work
                self._gather()
                await self._write_beside(True)

    def _remember_remote(self) -> None:
        link = self._store.decisions.remote
        if link is not None and self._remote and link.samples >= REMOTE_SAMPLES_MIN:
            self._known.remember_remote(self._remote, link.to_counts())

    def _gather(self) -> bool:
        """Whether there is something for the log."""
        ended = self._store.decisions.take_ended()
        if self._log is not None:
            for record in ended:
                self._log.add(record)
        return bool(ended)

    def _write_beside(self, saves: bool) -> asyncio.Future[None]:
        """By a thread that the process's end doesn't wait for."""
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()

        def write() -> None:
            self._write(saves)
            with contextlib.suppress(RuntimeError):  # the loop is over
                loop.call_soon_threadsafe(written)

        def written() -> None:
            if not over.done():
                over.set_result(None)

        threading.Thread(target=write, name="kvtier-log", daemon=True).start()
        return over

    def _write(self, saves: bool) -> None:
        if self._log is not None:
            self._log.flush()
        if saves and (self._known.is_measured or self._known.prefills or self._known.remotes):
            trouble = calibration.save(self.folder, self._known)
            if trouble:
                log.warning("what was learnt of this machine is not kept: %s; see cost.state", trouble)

    async def _measure(self) -> None:
        seconds = self._settings.number("cost.calibrate_s")
        found = await calibration.measured_beside(self._paths, seconds, self._settings.text("nvme.io"))
        for note in found.notes:
            log.warning("%s", note)
        if not found.is_measured:
            return
        found.take_learnt(self._known)
        self._known = found
        self._believe(found)
        link = self._store.decisions.drives
        if link is not None and calibration.NVME in found.links:
            speed = found.link(calibration.NVME)
            for n in OBSERVED_BYTES * OBSERVED_TIMES:
                link.observe(n, speed.latency_s + n / speed.bytes_per_s)
        self._save_at = 0.0

    def _believe(self, known: calibration.Calibration) -> None:
        """Engines that join copy as fast as this machine's memory, one of their steps later."""
        if calibration.CPU in known.links:
            self._store.decisions.engine_link = (ENGINE_LATENCY_S, known.link(calibration.CPU).bytes_per_s)
