"""kvtierd: wiring and life. Memory first, then the socket: a client that gets a Welcome gets a whole arena."""

import argparse
import asyncio
import gc
import logging
import os
import secrets
import signal
import sys
from pathlib import Path

from kvtier import __version__, _native, config
from kvtier.client import default_socket
from kvtier.config import Config, format_size
from kvtier.errors import ConfigError, DaemonError, KVTierError
from kvtier.server import Server
from kvtier.store import BlockStore

log = logging.getLogger("kvtierd")

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
EXIT_CONFIG, EXIT_FAULT = 2, 70
BLOCK_BYTES_USUAL = 512 * config.KIB  # for so many blocks the index has room at once; for more it grows by itself
TABLE_KEYS_MAX = 4_000_000


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
    if settings.text("log.level") not in LEVELS:
        raise ConfigError(f"{where}log.level = {settings['log.level']!r} is none of {', '.join(LEVELS)}")
    return settings


class Daemon:
    def __init__(self, settings: Config) -> None:
        self.settings = settings
        self.path = Path(settings.text("server.socket") or default_socket())
        self._status = 0

    async def run(self) -> int:
        """Serves until SIGTERM or SIGINT. Returns the exit status."""
        arena = self._make_arena()
        store = BlockStore(
            arena.size,
            lend_share=self.settings.number("lend.max_share"),
            lease_share=self.settings.number("lease.max_share"),
            table=_native.KeyTable(expected=min(arena.size // BLOCK_BYTES_USUAL, TABLE_KEYS_MAX)),
        )
        # A root and a generation of its own: what another kvtierd kept in its RAM can't be meant by any key or slot.
        generation = secrets.randbelow(2**61) + 1
        server = Server(store, arena.fd, self.settings, secrets.token_bytes(32), generation)
        server.facts["arena"] = {
            "huge_bytes": arena.huge_bytes,
            "pinned": arena.pinned,
            "notes": list(arena.notes),
        }
        server.facts["pid"] = os.getpid()

        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._loop.set_exception_handler(self._on_fault)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._over.set)
        server.listen(self.path)
        gc.collect()
        gc.freeze()  # what lives as long as the daemon need not be walked again
        log.info("kvtierd %s serves %s of RAM on %s", __version__, format_size(arena.size), self.path)
        await self._over.wait()
        server.close()
        self.path.unlink(missing_ok=True)
        log.info("kvtierd ends")
        return self._status

    def _make_arena(self) -> _native.Arena:
        align = 2 * config.MIB
        size = self.settings.count("cpu.capacity") // align * align
        log.info("taking %s of RAM", format_size(size))
        try:
            arena = _native.Arena.create(size, "kvtier-arena", pin=bool(self.settings["cpu.pin"]))
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
