"""RedisRemote: redis:// and rediss://, one Redis or Valkey server. Its wires are those of resp.py.

    redis://[[user]:password@]host[:port][/database]         rediss:// with TLS
    redis://[[user]:password@]/path/of/its.sock

A value is a string under "kvtier/<name>"; STRLEN says how long it is, and 0 that there is none. What leaves when the
server is full is its own business: `maxmemory` with `maxmemory-policy allkeys-lru` is meant.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from kvtier.errors import ConfigError
from kvtier.tiers.remote.base import CALLS_MAX, RemoteError, Unreachable
from kvtier.tiers.remote.resp import Login, Reply, RespWire, packed
from kvtier.tiers.remote.wire import Address

PORT = 6379
ESCAPED = (
    "in a password, write / ? # @ : % as %2F %3F %23 %40 %3A %25"  # what is wrong may be half a password: it isn't shown
)
NEAR = ("127.0.0.1", "::1", "localhost")
SETTINGS = ("username", "password", "password_file", "ca_file", "cert_file", "key_file")


class RedisRemote:
    def __init__(self, address: Address, login: Login, tls: ssl.SSLContext | None) -> None:
        """No I/O: a wire is opened when somebody takes it."""
        self.address = address
        self._free: asyncio.LifoQueue[RespWire] = asyncio.LifoQueue()  # the one that was used last is taken first
        for _ in range(CALLS_MAX):
            self._free.put_nowait(RespWire(address, login, tls))
        self._closed = False
        self._threads = ThreadPoolExecutor(CALLS_MAX, thread_name_prefix="kvtier-redis")
        self._is_near = bool(address.path) or address.host in NEAR

    async def lengths(self, names: Sequence[str]) -> list[int | None]:
        return [length_of(reply) for reply in await self.ask([[b"STRLEN", key_of(name)] for name in names])]

    async def get(self, name: str, header: memoryview, body: memoryview, asking: bool = False) -> bool:
        async with self._wire() as wire:
            await self._say(wire, [packed([b"GET", key_of(name)])], asking)
            return await wire.reply_into(header, body)

    async def put(self, name: str, header: bytes, body: memoryview, asking: bool = False) -> None:
        async with self._wire() as wire:
            command = packed([b"SET", key_of(name)], more=len(header) + body.nbytes) + header
            await self._say(wire, [command, body, b"\r\n"], asking)
            raise_error(await wire.reply())

    async def delete(self, names: Sequence[str]) -> None:
        for reply in await self.ask([[b"UNLINK", key_of(name)] for name in names]):
            raise_error(reply)

    async def close(self) -> None:
        self._closed = True
        for _ in range(self._free.qsize()):
            self._free.get_nowait().close()
        self._threads.shutdown(wait=False)

    async def ask(self, commands: Sequence[Sequence[bytes]], asking: bool = False) -> list[Reply]:
        """One round trip: all are sent before the first reply is read. Errors are among the replies."""
        if not commands:
            return []
        async with self._wire() as wire:
            before = packed([b"ASKING"]) if asking else b""
            await wire.send([b"".join(before + packed(command) for command in commands)], len(commands) * (1 + asking))
            replies = [await wire.reply() for _ in range(len(commands) * (1 + asking))]
            return replies[1::2] if asking else replies

    async def _say(self, wire: RespWire, command: list[bytes | memoryview], asking: bool) -> None:
        """A command; `asking`: of a node that is only about to have its slot."""
        if asking:
            await wire.send([packed([b"ASKING"])])
            raise_error(await wire.reply())
        await wire.send(command)

    @contextlib.asynccontextmanager
    async def _wire(self) -> AsyncIterator[RespWire]:
        """Whoever is cancelled or fails leaves a wire that is not clean: the next one opens it again."""
        wire = await self._free.get()
        is_alone = self._free.qsize() == CALLS_MAX - 1
        wire.may_spin = self._is_near and is_alone
        wire.threads = None if is_alone else self._threads
        try:
            if not wire.is_open:
                await wire.open()
            yield wire
        finally:
            if self._closed or not wire.is_clean:
                wire.close()
            self._free.put_nowait(wire)


def key_of(name: str) -> bytes:
    return b"kvtier/" + name.encode()


def length_of(reply: Reply) -> int | None:
    raise_error(reply)
    if not isinstance(reply, int):
        raise Unreachable("STRLEN answered with no number")
    return reply or None


def raise_error(reply: Reply) -> None:
    if isinstance(reply, RemoteError):
        raise reply


# --- the URL -----------------------------------------------------------------------------------------------------


def connect(url: str, settings: Mapping[str, object]) -> RedisRemote:
    parts = split(url)
    is_tls, database = parts.scheme == "rediss", 0
    if parts.hostname:
        address = Address(parts.hostname, port_of(parts))
        database = database_of(parts)
    elif len(parts.path) > 1 and "@" not in parts.path and not is_tls:
        address = Address(path=unquote(parts.path))
    else:
        raise ConfigError(f"{parts.scheme}:// needs a host, or without TLS the path of a unix socket; {ESCAPED}")
    return RedisRemote(address, login_of(parts, settings, database), tls_of(is_tls, settings))


def split(url: str) -> SplitResult:
    """ConfigError: there is something in it that means nothing here."""
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise ConfigError(f"{parts.scheme}:// takes nothing after '?' or '#'; {ESCAPED}")
    return parts


def port_of(parts: SplitResult) -> int:
    try:
        return PORT if parts.port is None else parts.port
    except ValueError as error:
        raise ConfigError(f"{parts.scheme}://: a port is a number; {ESCAPED}") from error


def database_of(parts: SplitResult) -> int:
    number = parts.path.strip("/")
    if number and not (number.isascii() and number.isdigit()):
        raise ConfigError(f"{parts.scheme}://: a database is a number; {ESCAPED}")
    return int(number or 0)


def login_of(parts: SplitResult, settings: Mapping[str, object], database: int = 0) -> Login:
    """What the settings say counts more than the URL."""
    unknown = sorted(settings.keys() - set(SETTINGS))
    if unknown:
        raise ConfigError(f"{parts.scheme}:// has no setting {unknown[0]!r}; it has {', '.join(SETTINGS)}")
    username = str(settings.get("username", "")) or unquote(parts.username or "")
    password = str(settings.get("password", "")) or unquote(parts.password or "")
    if file := str(settings.get("password_file", "")):
        try:
            password = Path(file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"password_file: {error}") from error
    if username and not password:
        raise ConfigError(f"{parts.scheme}:// has a user without a password")
    return Login(username, password, database)


def tls_of(wanted: bool, settings: Mapping[str, object]) -> ssl.SSLContext | None:
    """The server's certificate is verified, always; with `cert_file` it sees one of ours."""
    files = {name: str(settings.get(name, "")) for name in ("ca_file", "cert_file", "key_file")}
    if not wanted:
        if any(files.values()):
            raise ConfigError("a certificate without TLS: write rediss://")
        return None
    try:
        context = ssl.create_default_context(cafile=files["ca_file"] or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if files["cert_file"]:
            context.load_cert_chain(files["cert_file"], files["key_file"] or None)
    except OSError as error:
        raise ConfigError(f"a certificate of {files} can't be used: {error}") from error
    return context
