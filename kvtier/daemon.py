"""kvtierd: wiring and life. Memory first, then the socket: a client that gets a Welcome gets a whole arena."""

import argparse
import asyncio
import gc
import importlib
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kvtier import __version__, _native, config, topology
from kvtier.admin import default_admin_socket
from kvtier.admission import Budget
from kvtier.block import SLOT_UNIT
from kvtier.client import default_socket
from kvtier.config import Config, format_size
from kvtier.deciding import MODES
from kvtier.errors import ConfigError, DaemonError, KVTierError
from kvtier.experience import Experience
from kvtier.extents import Extents
from kvtier.guard import Guard
from kvtier.mover import Mover
from kvtier.server import Server
from kvtier.store import POLICIES, BlockStore
from kvtier.tiers.base import Recovered
from kvtier.tiers.gpu import GpuTier, device_named
from kvtier.tiers.nvme import NvmeTier

if TYPE_CHECKING:
    from kvtier.admin.service import AdminService

log = logging.getLogger("kvtierd")

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
EXIT_CONFIG, EXIT_FAULT = 2, 70
BLOCK_BYTES_USUAL = 512 * config.KIB  # for so many blocks the index has room at once; for more it grows by itself
TABLE_KEYS_MAX = 4_000_000
DRAIN = 0  # the flush before the end; observers' flushes have other numbers
ALIGN = 2 * config.MIB  # of what is taken of memories
GPU_DRAIN_S = 5.0  # so long workers may take to end copies from the GPU tier
TICK_S = 0.05  # between looks at the clock
WIPE_BYTES = 4 * config.MIB  # zeroed at a time, in about a millisecond; then whoever waits is served


def main() -> None:
    parser = argparse.ArgumentParser(prog="kvtierd", description="Keeps the KV cache of idle conversations.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a TOML file; see --print-config")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one setting, over the file's")
    parser.add_argument("--print-config", action="store_true", help="print every setting with its default, and exit")
    parser.add_argument("--version", action="version", version=f"kvtierd {__version__}")
    given = parser.parse_args()
    if given.print_config:
        print(config.example_toml(), end="")
        return
    try:
        settings = load(given.config, given.set)
        logging.basicConfig(
            level=LEVELS[settings.text("log.level")],
            format="%(asctime)s %(levelname)-7s %(message)s",
            stream=sys.stderr,
        )
        sys.exit(asyncio.run(Daemon(settings).run()))
    except KVTierError as error:
        print(f"kvtierd: {error}", file=sys.stderr)
        sys.exit(EXIT_CONFIG)


def load(file: Path | None, overrides: list[str]) -> Config:
    """The daemon's settings: defaults, then the file, then --set. ConfigError says what is wrong and where."""
    given: dict[str, object] = {}
    where = ""
    if file is not None:
        where = f"{file}: "
        try:
            given.update(config.parse_toml(file.read_text(), str(file)))
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}") from None
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: write NAME=VALUE")
        given[name.strip()] = value.strip()
    settings = Config(config.DAEMON, given, where)
    for name, known in (("log.level", LEVELS), ("cost.mode", MODES), ("policy.name", POLICIES)):
        if settings.text(name) not in known:
            raise ConfigError(f"{where}{name} = {settings[name]!r} is none of {', '.join(known)}")
    return settings


def _key_table(capacity: int) -> _native.KeyTable:
    """With room for the blocks that usually lie in so many bytes."""
    return _native.KeyTable(expected=min(capacity // BLOCK_BYTES_USUAL, TABLE_KEYS_MAX))


class Daemon:
    def __init__(self, settings: Config) -> None:
        self.settings = settings
        self.path = Path(settings.text("server.socket") or default_socket())
        self.admin_path = Path(settings.text("admin.socket") or default_admin_socket(self.path))
        self._status = 0
        self._mover: Mover | None = None  # of the drives
        self._movers: list[Mover] = []
        self._admin: AdminService | None = None
        self._drained: bool | None = None  # whether the last flush before the end was good

    async def run(self) -> int:
        """Serves until SIGTERM or SIGINT. Returns the exit status."""
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._loop.set_exception_handler(self._on_fault)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._over.set)
        arena = self._make_arena()
        self._store = BlockStore(
            arena.size,
            lend_share=self.settings.number("lend.max_share"),
            lease_share=self.settings.number("lease.max_share"),
            table=_key_table(arena.size),
            policy=self.settings.text("policy.name"),
            session_table=_key_table(arena.size),
        )
        self._store.retention.pins.share = self.settings.number("policy.pin_share")
        self._store.retention.pins.usual_s = self.settings.number("policy.pin_s")
        self._wiper = Wiper(self._store, arena, self._after_event)
        paths = [Path(path.strip()) for path in self.settings.text("nvme.paths").split(",") if path.strip()]
        experience = self._experience = Experience(self.settings, paths)
        decisions = self._store.decisions
        decisions.mode = self.settings.text("cost.mode")
        decisions.guard = Guard(self.settings.number("cost.holdout"))
        decisions.epoch_s = time.time() - time.monotonic()
        gpu = self._open_gpu(arena)
        tier = self._open_nvme(arena, paths)
        # Without a tier that survives: a root of its own. What another kvtierd kept in its RAM can't be meant by any key,
        # and none of its slots by any generation.
        root = tier.root if tier is not None else secrets.token_bytes(32)
        server = self._server = Server(self._store, arena.fd, self.settings, root, secrets.randbelow(2**61) + 1)
        server.facts.update(
            pid=os.getpid(), arena={"huge_bytes": arena.huge_bytes, "pinned": arena.pinned, "notes": list(arena.notes)}
        )
        server.after_event = self._after_event
        if tier is not None:
            server.tier_states["nvme"] = tier.state
            self._mover = Mover(tier, self._store.transfers, self._store.finished, self._after_event)
            self._movers.append(self._mover)
        if gpu is not None and self._store.mirror is not None:
            server.tier_states["gpu"] = gpu.state
            server.for_workers = {"gpu": gpu.handle, "gpu_capacity": gpu.capacity}
            server.for_workers |= {"gpu_uuid": gpu.uuid, "gpu_stamp": gpu.stamp}
            self._movers.append(Mover(gpu, self._store.mirror.transfers, self._store.gpu_finished, self._after_event))
        for mover in self._movers:
            mover.listen()
        experience.begin(self._store, time.monotonic())
        server.on_join, server.on_leave = experience.joined, experience.left
        self._tick()
        server.listen(self.path)
        await self._serve_admin()
        server.serve()
        log.info("kvtierd %s serves %s of RAM on %s", __version__, format_size(arena.size), self.path)
        gc.collect()
        gc.freeze()  # what lives as long as the daemon need not be walked again
        await self._over.wait()
        await self._end()
        return self._status

    async def _serve_admin(self) -> None:
        """Before engines are: they might take the last descriptors, without which gRPC ends a process."""
        service = importlib.import_module("kvtier.admin.service")
        admin = service.AdminService(self._store, self._after_event)
        try:
            await admin.start(self.admin_path)
        except DaemonError:
            self.path.unlink()
            raise
        self._admin = admin

    async def _end(self) -> None:
        """Engines first, so that nothing new comes; then what they left is written. The arena stays as it is for those
        who read it; the GPU's memory doesn't, so they are waited for."""
        if self._store.mirror is not None and not self._status and not await self._server.drain(GPU_DRAIN_S):
            log.warning("an engine did not end its copies in %g s; its loads from the GPU tier may fail", GPU_DRAIN_S)
        self._server.close()
        self.path.unlink(missing_ok=True)
        if self._admin is not None:  # what is being forgotten may still come to its end
            stopping = asyncio.create_task(self._admin.stop(self.settings.number("nvme.drain_s")))
        drains = self._mover is not None and not self._status
        if drains and not await self._drain(self.settings.number("nvme.drain_s")):
            log.warning("not all blocks could be written to the drives; raise nvme.drain_s if the drives are slow")
        for mover in self._movers:
            mover.close()
        if self._admin is not None:
            await self._admin.stop(None)
            await stopping
        await self._experience.end()
        log.info("kvtierd ends")

    async def _drain(self, within_s: float) -> bool:
        """Whether what is worth a write has been written, and survives a crash."""
        self._store.flush(DRAIN)
        until = time.monotonic() + within_s
        while self._drained is None and time.monotonic() < until:
            await asyncio.sleep(TICK_S)
        return bool(self._drained)

    def _after_event(self) -> None:
        for mover in self._movers:
            mover.pump()
        self._wiper.look()
        self._server.settle()
        for flush, is_durable in self._store.flushed():
            if flush == DRAIN:
                self._drained = is_durable
            else:
                self._server.flushed(flush, is_durable)

    def _tick(self) -> None:
        """Time passes: for lookups that wait, for the write budget, for a drive that was full, for what is to be logged."""
        self._loop.call_later(TICK_S, self._tick)
        now = time.monotonic()
        self._store.tick(now)
        self._experience.tick(now)
        self._after_event()
        if self._admin is not None:
            self._admin.settle()
        self._server.beat()

    def _open_nvme(self, arena: _native.Arena, paths: list[Path]) -> NvmeTier | None:
        """Attached to the store, with all that survived. DaemonError names the setting that cures it."""
        if not paths:
            return None
        begun = time.monotonic()
        tier = NvmeTier(paths, self.settings.count("nvme.capacity"), arena.address, io=self.settings.text("nvme.io"))
        for note in tier.notes:
            log.warning("%s", note)
        found, tier.recovered = tier.recovered, Recovered()
        extents = Extents(tier.extents, tier.extent_bytes, tier.drives, _key_table(tier.extents * tier.extent_bytes))
        odd = extents.recover(found.keys, found.places, found.sizes, found.namespaces, found.checksums, found.origins)
        budget = Budget(self.settings.number("nvme.endurance_dwpd") * tier.rated_bytes, time.monotonic())
        stage_s = self.settings.number("nvme.stage_deadline_ms") / 1e3
        self._store.attach(extents, budget, stage_s, found.remembered, self._experience.drives_link())
        size = format_size(extents.used_bytes)
        log.info("%s blocks (%s) found on %d drives in %.2f s, by %s", f"{len(extents):,}", size, tier.drives,
                 time.monotonic() - begun, tier.io_backend)  # fmt: skip
        if odd:
            log.warning("%d blocks on the drives don't fit their extents and are forgotten", odd)
        return tier

    def _open_gpu(self, arena: _native.Arena) -> GpuTier | None:
        """Attached to the store. DaemonError names the setting, and the driver's reason."""
        wanted = self.settings.count("gpu.capacity")
        if not wanted:
            return None
        try:
            driver = _native.CudaDriver.open()
            if driver.reason:
                raise ValueError(driver.reason)
            if wanted < ALIGN:
                raise ValueError(f"at least {format_size(ALIGN)} are of use")
            device = device_named(self.settings.text("gpu.device"), driver.devices)
            tier = GpuTier(driver, device, wanted // ALIGN * ALIGN, arena.view())
        except (ValueError, MemoryError, RuntimeError, OSError) as error:
            cure = "change gpu.device or gpu.capacity, or set gpu.capacity = 0 to do without the GPU tier"
            raise DaemonError(f"can't have gpu.capacity = {format_size(wanted)}: {error}; {cure}") from None
        self._store.attach_gpu(tier.capacity)
        log.info("copies of up to %s in memory of %s", format_size(tier.capacity), tier.name)
        return tier

    def _make_arena(self) -> _native.Arena:
        size = self.settings.count("cpu.capacity") // ALIGN * ALIGN
        log.info("taking %s of RAM", format_size(size))
        try:
            node = topology.arena_node(self.settings.text("cpu.numa"))
            arena = _native.Arena.create(size, "kvtier-arena", pin=bool(self.settings["cpu.pin"]), numa_node=node)
        except (MemoryError, OSError) as error:
            raise DaemonError(f"can't take cpu.capacity = {format_size(size)}: {error}; lower it") from None
        for note in arena.notes:
            log.warning("%s", note)
        return arena

    def _on_fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """A loop edge: an error that nobody expected. The store may be wrong now, so end rather than lie; the service
        manager starts a new one, and engines go on without."""
        error = context.get("exception")
        log.critical(
            "kvtierd has a fault and ends: %s",
            context.get("message"),
            exc_info=error if isinstance(error, BaseException) else None,
        )
        self._status = EXIT_FAULT
        self._over.set()


class Wiper:
    """Overwrites with zeros what is to be forgotten of the arena, a piece at a time."""

    def __init__(self, store: BlockStore, arena: _native.Arena, after_event: Callable[[], None]) -> None:
        self._store, self._bytes, self._after_event = store, arena.view(), after_event
        self._waiting: dict[int, int] = {}  # slot -> bytes
        self._is_due = False

    def look(self) -> None:
        """To be called after whatever happened."""
        self._waiting.update(self._store.wipes())
        if self._waiting and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._wipe)

    def _wipe(self) -> None:
        left = WIPE_BYTES
        while self._waiting and left > 0:
            slot, size = self._waiting.popitem()
            self._bytes[slot * SLOT_UNIT : slot * SLOT_UNIT + size] = 0
            self._store.wiped(slot)
            left -= size
        self._is_due = False
        self._after_event()
