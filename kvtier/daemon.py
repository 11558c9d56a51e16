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

from kvtier import __version__, _native, config, opening
from kvtier.admin import default_admin_socket
from kvtier.block import SECRET_BYTES, SLOT_UNIT
from kvtier.client import default_socket
from kvtier.config import Config, format_size
from kvtier.deciding import MODES
from kvtier.errors import ConfigError, DaemonError, KVTierError
from kvtier.experience import Experience
from kvtier.guard import Guard
from kvtier.mover import Mover, Orders
from kvtier.peer.listening import listening
from kvtier.rankings import POLICIES
from kvtier.server import Server
from kvtier.store import BlockStore
from kvtier.tiers.base import Tier
from kvtier.tiers.remote import shown
from kvtier.tiers.remote.remote import RemoteTier
from kvtier.transfer import Finished
from kvtier.visitor import Visitor

if TYPE_CHECKING:
    from kvtier.admin.service import AdminService
    from kvtier.peer_service import PeerService

log = logging.getLogger("kvtierd")

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
EXIT_CONFIG, EXIT_FAULT = 2, 70
DRAIN = 0  # the flush before the end; observers' flushes have other numbers
PEERS_S = 0.5  # so long other nodes may take to end their calls
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
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # or whoever scans peer.listen writes into our log
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


class Daemon:
    def __init__(self, settings: Config) -> None:
        self.settings = settings
        self.path = Path(settings.text("server.socket") or default_socket())
        self.admin_path = Path(settings.text("admin.socket") or default_admin_socket(self.path))
        self._status = 0
        self._movers: list[Mover] = []
        self._remote: RemoteTier | None = None
        self._admin: AdminService | None = None
        self._peers: PeerService | None = None
        self._visitors: list[Visitor] = []
        self._drained: dict[str, bool] = {}  # by tier: whether the last flush before the end was good

    async def run(self) -> int:
        """Serves until SIGTERM or SIGINT. Returns the exit status."""
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._loop.set_exception_handler(self._on_fault)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._over.set)
        server = self._open()
        for mover in self._movers:
            mover.listen()
        self._experience.begin(self._store, time.monotonic())
        server.on_join, server.on_leave = self._experience.joined, self._experience.left
        self._tick()
        server.listen(self.path)
        await self._serve_admin()
        self._serve_peers()
        server.serve()
        log.info("kvtierd %s serves %s of RAM on %s", __version__, format_size(self._store.ram.slots.capacity), self.path)
        gc.collect()
        gc.freeze()  # what lives as long as the daemon need not be walked again
        await self._over.wait()
        await self._end()
        return self._status

    def _open(self) -> Server:
        """All that there is, and nothing is served yet. What is wrong in the settings shows before anything is taken."""
        settings = self.settings
        root, remote = opening.shared_root(settings), opening.remote_store(settings)
        self._listening = listening(settings)
        arena = self._arena = opening.arena_of(settings)  # it lives as long as we do
        store = self._store = BlockStore(
            arena.size,
            lend_share=settings.number("lend.max_share"),
            lease_share=settings.number("lease.max_share"),
            table=opening.key_table(arena.size),
            policy=settings.text("policy.name"),
            session_table=opening.key_table(arena.size),
        )
        store.retention.pins.share = settings.number("policy.pin_share")
        store.retention.pins.usual_s = settings.number("policy.pin_s")
        self._wiper = Wiper(store, arena, self._after_event)
        paths = [Path(path.strip()) for path in settings.text("nvme.paths").split(",") if path.strip()]
        experience = self._experience = Experience(settings, paths)
        store.decisions.mode = settings.text("cost.mode")
        store.decisions.guard = Guard(settings.number("cost.holdout"))
        store.decisions.epoch_s = time.time() - time.monotonic()
        gpu = opening.gpu_tier(settings, store, arena)
        drives = opening.nvme_tier(settings, paths, store, arena, root, experience.drives_link())
        if drives is not None:
            root = drives.root
        # Without a root that survives, one of its own. What another kvtierd kept in its RAM can't be meant by any key, and
        # none of its slots by any generation.
        self._root = root or secrets.token_bytes(SECRET_BYTES)
        server = self._server = Server(store, arena.fd, settings, self._root, secrets.randbelow(2**61) + 1)
        server.facts.update(
            pid=os.getpid(), arena={"huge_bytes": arena.huge_bytes, "pinned": arena.pinned, "notes": list(arena.notes)}
        )
        server.after_event = self._after_event
        if drives is not None:
            self._attend("nvme", drives, store.transfers, store.finished)
        if gpu is not None and store.mirror is not None:
            server.for_workers = {"gpu": gpu.handle, "gpu_capacity": gpu.capacity}
            server.for_workers |= {"gpu_uuid": gpu.uuid, "gpu_stamp": gpu.stamp}
            self._attend("gpu", gpu, store.mirror.transfers, store.gpu_finished)
        if remote is not None:
            url = settings.text("remote.url")
            tier = self._remote = opening.remote_tier(settings, remote, store, arena, experience.remote_link(url))
            self._attend("remote", tier, store.remote_transfers, store.remote_finished)
            server.tier_states["remote"] = lambda: {"url": shown(url), **tier.state()}
        return server

    def _attend(self, name: str, tier: Tier, orders: Orders, finished: Callable[[Finished, float], None]) -> None:
        """What the store orders goes to the tier from now on, and observers see its state."""
        self._server.tier_states[name] = tier.state
        self._movers.append(Mover(tier, orders, finished, self._after_event))

    async def _serve_admin(self) -> None:
        """Before engines are: they might take the last descriptors, without which gRPC ends a process."""
        service = importlib.import_module("kvtier.admin.service")
        visitor = Visitor(self._store, self._arena.view(), self._after_event, "admin")
        admin = service.AdminService(self._store, self._after_event, visitor, self._root)
        try:
            await admin.start(self.admin_path)
        except DaemonError:
            self.path.unlink()
            raise
        self._admin = admin
        self._visitors.append(visitor)

    def _serve_peers(self) -> None:
        if self._listening is None:
            return
        visitor = Visitor(self._store, self._arena.view(), self._after_event, "peer")
        service = importlib.import_module("kvtier.peer_service")
        peers = service.PeerService(visitor, self._store.stats, self.settings.number("peer.write_rate"))
        try:
            peers.start(*self._listening)
        except DaemonError:
            self.path.unlink()
            raise
        self._peers = peers
        self._visitors.append(visitor)

    async def _end(self) -> None:
        """Engines first, so that nothing new comes; then what they left is written. The arena stays as it is for those
        who read it; the GPU's memory doesn't, so they are waited for."""
        if self._store.mirror is not None and not self._status and not await self._server.drain(GPU_DRAIN_S):
            log.warning("an engine did not end its copies in %g s; its loads from the GPU tier may fail", GPU_DRAIN_S)
        self._server.close()
        self.path.unlink(missing_ok=True)
        if self._peers is not None:
            await self._peers.stop(PEERS_S)
        if self._admin is not None:  # what is being forgotten may still come to its end
            stopping = asyncio.create_task(self._admin.stop(self.settings.number("nvme.drain_s")))
        if not self._status:
            await self._drain(self.settings.number("nvme.drain_s"))
        for mover in self._movers:
            mover.close()
        if self._admin is not None:
            await self._admin.stop(None)
            await stopping
        for visitor in self._visitors:
            visitor.close()
        await self._experience.end()
        log.info("kvtierd ends")

    async def _drain(self, within_s: float) -> None:
        """What is worth a write is written, and survives a crash; or the log says that it isn't so."""
        lower, away = self._store.lower, self._store.away
        if lower is not None:
            self._store.flush(DRAIN)
        if away is not None:
            away.flush(DRAIN)
        until = time.monotonic() + within_s
        while self._is_draining() and time.monotonic() < until:
            await asyncio.sleep(TICK_S)
        if lower is not None and not self._drained.get("nvme"):
            log.warning("not all blocks could be written to the drives; raise nvme.drain_s if the drives are slow")
        if away is not None and not self._drained.get("remote") and away.demotions.waiting:
            log.warning("%d blocks could not be written to the remote", away.demotions.waiting)

    def _is_draining(self) -> bool:
        """A remote that takes no writes now is not waited for."""
        away = self._store.away
        if away is not None and "remote" not in self._drained and (is_there := away.flushed(DRAIN)) is not None:
            self._drained["remote"] = is_there
        if self._store.lower is not None and "nvme" not in self._drained:
            return True
        return self._remote is not None and "remote" not in self._drained and not self._remote.read_only

    def _after_event(self) -> None:
        for mover in self._movers:
            mover.pump()
        self._wiper.look()
        for visitor in self._visitors:
            visitor.settle()
        self._server.settle()
        for flush, is_durable in self._store.flushed():
            if flush == DRAIN:
                self._drained["nvme"] = is_durable
            else:
                self._server.flushed(flush, is_durable)

    def _tick(self) -> None:
        """Time passes: for lookups that wait, for the write budget, for a drive that was full, for what is to be logged."""
        self._loop.call_later(TICK_S, self._tick)
        now = time.monotonic()
        if self._remote is not None:
            self._store.set_remote_away(self._remote.is_away)
        self._store.tick(now)
        self._experience.tick(now)
        self._after_event()
        if self._admin is not None:
            self._admin.settle()
        self._server.beat()

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
