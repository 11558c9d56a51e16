"""kvtierd: wiring and life. Memory first, then the socket: a client that gets a Welcome gets a whole arena."""

import asyncio
import gc
import importlib
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kvtier import __version__, config, ending, logs, opening, service_manager, upgrade
from kvtier.access import Access
from kvtier.admin import default_admin_socket
from kvtier.beat import Beat
from kvtier.block import SECRET_BYTES
from kvtier.client import default_socket
from kvtier.config import Config, format_size
from kvtier.errors import DaemonError, KVTierError, MemoryShortError
from kvtier.experience import Experience
from kvtier.guard import Guard
from kvtier.hardening import forbid_dumps
from kvtier.listener import adopt, bind
from kvtier.metrics_server import MetricsServer, Process, address_of
from kvtier.mover import Mover, Orders
from kvtier.peer.listening import listening
from kvtier.server import Server
from kvtier.settings import drive_folders, load
from kvtier.tiers.base import Tier
from kvtier.tiers.remote import shown
from kvtier.tiers.remote.remote import RemoteTier
from kvtier.transfer import Finished
from kvtier.usage import Parser, examples
from kvtier.users import Users
from kvtier.visitor import Visitor
from kvtier.wiping import Wiper

if TYPE_CHECKING:
    from kvtier.admin.service import AdminService
    from kvtier.peer_service import PeerService

log = logging.getLogger("kvtierd")

EXIT_CONFIG, EXIT_FAULT, EXIT_MEMORY = 2, 70, 75
DRAIN = 0  # the flush before the end; observers' flushes have other numbers
PEERS_S = 0.5  # so long other nodes may take to end their calls
ENDS_S = 30.0  # so long the end may take beside nvme.drain_s, at the most
GPU_DRAIN_S = 5.0  # so long workers may take to end copies from the GPU tier
DRAIN_LOOK_S = 0.05  # between looks whether all is written


def parser() -> Parser:
    made = Parser(
        prog="kvtierd",
        description="Keeps the KV cache of idle conversations and gives it back to the engines of this node. Serves until "
        "SIGTERM or SIGINT; then what is worth it is written below RAM, for at most nvme.drain_s.",
        epilog=examples(
            "kvtierd --config /etc/kvtier/kvtier.toml",
            "kvtierd --set cpu.capacity=64GiB --set nvme.paths=/mnt/nvme0/kvtier --set nvme.capacity=1TiB",
            exits=f"0 ended as it was told; {EXIT_CONFIG} a setting is wrong or can't be met; {EXIT_FAULT} its own fault; "
            f"{EXIT_MEMORY} there is no memory for cpu.capacity now",
        ),
    )
    made.add_argument("--config", type=Path, metavar="FILE", help="a TOML file; see --print-config")
    made.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one setting, over the file's")
    made.add_argument("--print-config", action="store_true", help="print every setting with its default, and exit")
    made.add_argument("--version", action="version", version=f"kvtierd {__version__}")
    return made


def main() -> None:
    given = parser().parse_args()
    if given.print_config:
        print(config.example_toml(), end="")
        return
    form = logs.TEXT
    try:
        settings = load(given.config, given.set)
        form = settings.text("log.format")
        logs.begin(settings.text("log.level"), form)
        if not settings["security.dumpable"]:
            forbid_dumps()
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # or whoever scans peer.listen writes into our log
        sys.exit(asyncio.run(Daemon(settings).run()))
    except KVTierError as error:
        if form == logs.JSON:
            log.critical("kvtierd can't start: %s", error)
        else:
            print(f"kvtierd: {error}", file=sys.stderr)
        sys.exit(EXIT_MEMORY if isinstance(error, MemoryShortError) else EXIT_CONFIG)


class Daemon:
    def __init__(self, settings: Config) -> None:
        self.settings = settings
        self.passed = service_manager.passed()
        self._socket: socket.socket | None = None  # of the service manager
        self.path = Path(settings.text("server.socket") or default_socket())
        if fds := self.passed.get("kvtierd"):
            self._socket, self.path = adopt(fds)
        self.admin_path = Path(settings.text("admin.socket") or default_admin_socket(self.path))
        self._status = 0
        self._movers: list[Mover] = []
        self._remote: RemoteTier | None = None
        self._admin: AdminService | None = None
        self._peers: PeerService | None = None
        self._visitors: list[Visitor] = []
        self._metrics: MetricsServer | None = None
        self._inherited: upgrade.Inheritance | None = None  # until it is gone on with
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
        server.listen(self._socket or bind(self.path, server.access.gid))
        admin = self._listen_admin()
        self._serve_peers()
        self._serve_metrics()
        # Not before all that can be refused was had: the next start may want what this one inherits; and a measurement
        # that has just begun keeps asyncio from an end. Nor after anything is heard: until here nothing is awaited.
        self._go_on()
        # Before engines are served: they might take the last descriptors, without which gRPC ends a process.
        await admin.start()
        self._admin = admin
        self._experience.begin(self._store, time.monotonic())
        server.on_join, server.on_leave = self._experience.joined, self._experience.left
        self._beat.begin()
        server.serve()
        log.info("kvtierd %s serves %s of RAM on %s", __version__, format_size(self._store.ram.slots.capacity), self.path)
        gc.freeze()  # what lives as long as the daemon need not be walked again, nor once now: the start would wait for it
        self._pulse.tick(time.monotonic())  # the status before it is ready, so that nobody sees it without
        service_manager.notify("READY=1")
        await self._over.wait()
        await self._end()
        return self._status

    def _open(self) -> Server:
        """All that there is, and nothing is served yet. What is wrong in the settings shows before anything is taken."""
        settings = self.settings
        opening.require_codecs(settings)
        root, remote = opening.shared_root(settings), opening.remote_store(settings)
        access, self._admin_access = (Access(settings.text(name), name) for name in ("server.group", "admin.group"))
        self._listening, self._metrics_at = listening(settings), address_of(settings, self.path)
        arena, store, inherited = upgrade.begin(self.passed, settings, lambda: opening.store_of(settings))
        self._store, self._inherited = store, inherited
        self._arena = arena  # it lives as long as we do
        self._beat = Beat(self._tick, self._waits, lambda: min(store.retention.due_at, self._pulse.due_at))
        opening.limit_tenants(settings, store)
        self._wiper = Wiper(store, arena, self._after_event)
        paths = drive_folders(settings)
        experience = self._experience = Experience(settings, paths)
        store.decisions.mode = settings.text("cost.mode")
        store.decisions.guard = Guard(settings.number("cost.holdout"))
        store.decisions.epoch_s = time.time() - time.monotonic()
        gpu = opening.gpu_tier(settings, store, arena)
        drives = opening.nvme_tier(settings, paths, store, arena, root, experience.drives_link())
        if drives is not None:
            root = drives.root
        # Without a root that survives, one of its own. What another kvtierd kept in its RAM can't be meant by any key, and
        # none of its slots by any generation; but one that goes on with that RAM goes on with both.
        self._root = root or (inherited.root if inherited is not None else secrets.token_bytes(SECRET_BYTES))
        generation = secrets.randbelow(2**61) + 1 if inherited is None else inherited.generation
        server = self._server = Server(store, arena.fd, settings, self._root, generation)
        server.facts.update(
            pid=os.getpid(), arena={"huge_bytes": arena.huge_bytes, "pinned": arena.pinned, "notes": list(arena.notes)}
        )
        server.facts.update(durations=store.stats.durations, process=Process().facts)
        server.after_event = self._after_event
        server.access, server.users = access, Users(are_one=bool(settings["tenant.share_users"]))
        self._pulse = service_manager.Pulse(lambda: service_manager.status_of(store, len(server.clients)))
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

    def _go_on(self) -> None:
        """With what the former kvtierd left, if anything."""
        inherited, self._inherited = self._inherited, None
        if inherited is not None:
            ending.go_on(self._server, upgrade.go_on(self._store, inherited, self._root).leftovers)

    def _attend(self, name: str, tier: Tier, orders: Orders, finished: Callable[[Finished, float], None]) -> None:
        """What the store orders goes to the tier from now on, and observers see its state."""
        self._server.tier_states[name] = tier.state
        self._movers.append(Mover(tier, orders, finished, self._after_event, name, self._store.stats))

    def _listen_admin(self) -> "AdminService":
        service = importlib.import_module("kvtier.admin.service")
        visitor = Visitor(self._store, self._arena.view(), self._after_event, "admin")
        admin = service.AdminService(self._store, self._after_event, visitor, self._root)
        try:
            admin.listen(self.admin_path, self._admin_access.gid)
        except DaemonError:
            self._leave_path()
            raise
        self._visitors.append(visitor)
        return admin

    def _serve_peers(self) -> None:
        if self._listening is None:
            return
        visitor = Visitor(self._store, self._arena.view(), self._after_event, "peer")
        service = importlib.import_module("kvtier.peer_service")
        peers = service.PeerService(visitor, self._store.stats, self.settings.number("peer.write_rate"))
        try:
            peers.start(*self._listening)
        except DaemonError:
            self._leave_path()
            raise
        self._peers = peers
        self._visitors.append(visitor)

    def _serve_metrics(self) -> None:
        if self._metrics_at is None:
            return
        metrics = MetricsServer(self._server.snapshot)
        try:
            metrics.serve(self._metrics_at)
        except DaemonError:
            self._leave_path()
            raise
        self._metrics = metrics

    def _leave_path(self) -> None:
        """Nobody finds us there any more, unless the service manager listens on."""
        if self._socket is None:
            self.path.unlink(missing_ok=True)

    async def _end(self) -> None:
        """If the arena is kept for the next kvtierd (upgrade.py), what is worth it is written below while engines are still
        served. Else engines first, so that nothing new comes; then what they left is written. The arena stays as it is for
        those who read it; the GPU's memory doesn't, so they are waited for."""
        drain_s = self.settings.number("nvme.drain_s")
        self._pulse.end(drain_s + ENDS_S)
        is_kept = not self._status and service_manager.keep(upgrade.ARENA, self._arena.fd)
        if is_kept:
            others = asyncio.create_task(self._stop_others(drain_s))
            await self._drain(drain_s)
            await others
        if not self._status and not await ending.drain_gpu(self._server, GPU_DRAIN_S):
            log.warning("an engine did not end its copies in %g s; its loads from the GPU tier may fail", GPU_DRAIN_S)
        if is_kept:
            await ending.drain_workers(self._server, upgrade.HANG_UP_S)
        else:
            self._server.close()
        self._leave_path()
        if not is_kept:
            others = asyncio.create_task(self._stop_others(drain_s))
            if not self._status:
                await self._drain(drain_s)
        for mover in self._movers:
            mover.close()
        self._movers.clear()
        if self._admin is not None:
            await self._admin.stop(None)
        await others
        for visitor in self._visitors:
            visitor.close()
        await self._experience.end()
        if is_kept and not self._status:
            upgrade.hand_over(self._server, self._root)
        elif is_kept:  # a fault came up meanwhile: the store may be wrong
            service_manager.drop(upgrade.ARENA)
        if self._metrics is not None:
            self._metrics.close()
        log.info("kvtierd ends")

    async def _stop_others(self, within_s: float) -> None:
        """Those that are no engines; what is being forgotten may still come to its end."""
        if self._peers is not None:
            await self._peers.stop(PEERS_S)
        if self._admin is not None:
            await self._admin.stop(within_s)

    async def _drain(self, within_s: float) -> None:
        """What is worth a write is written, and survives a crash; or the log says that it isn't so."""
        lower, away = self._store.lower, self._store.away
        if lower is not None:
            self._store.flush(DRAIN)
        if away is not None:
            away.flush(DRAIN)
        until = time.monotonic() + within_s
        while self._is_draining() and time.monotonic() < until:
            await asyncio.sleep(DRAIN_LOOK_S)
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
        self._beat.stir()
        self._settle()

    def _settle(self) -> None:
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

    def _waits(self) -> bool:
        return self._over.is_set() or bool(self._store.leases.waiting())

    def _tick(self, now: float) -> None:
        """Time passes: for lookups that wait, for the write budget, for a drive that was full, for what is to be logged."""
        self._store.stats.observe("tick", self._beat.late_s)
        if self._remote is not None:
            self._store.set_remote_away(self._remote.is_away)
        self._store.tick(now)
        self._experience.tick(now)
        self._settle()
        if self._admin is not None:
            self._admin.settle()
        self._server.beat()
        self._pulse.tick(now)

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
