"""RedisRemote: redis:// and rediss://, one Redis or Valkey server. Its wires are those of resp.py.

    redis://[[user]:password@]host[:port][/database]         rediss:// with TLS
    redis://[[user]:password@]/path/of/its.sock

A value is a string under "kvtier/<name>"; STRLEN says how long it is, and 0 that there is none. What leaves when the
server is full is its own business: `maxmemory` with `maxmemory-policy allkeys-lru` is meant.
"""

import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from kvtier.errors import ConfigError
from kvtier.tiers.remote.base import CALLS_MAX, Corrupt, RemoteError, Unreachable
from kvtier.tiers.remote.exchanges import Exchanges
from kvtier.tiers.remote.resp import END, Login, Reply, RespWire, packed
from kvtier.tiers.remote.wire import Address

PORT = 6379
ESCAPED = (
    "in a password, write / ? # @ : % as %2F %3F %23 %40 %3A %25"  # what is wrong may be half a password: it isn't shown
)
SETTINGS = ("username", "password", "password_file", "ca_file", "cert_file", "key_file")


class RedisRemote:
    def __init__(
        self, address: Address, login: Login, tls: ssl.SSLContext | None, exchanges: Exchanges | None = None
    ) -> None:
        """No I/O: a wire is opened when somebody takes it. `exchanges` are shared, and closed by whoever gave them."""
        self.address, self._login, self._tls = address, login, tls
        self._free: list[RespWire] = []  # the one that was used last is taken first
        self._closed = False
        self._own = Exchanges(CALLS_MAX)
        self._exchanges = exchanges or self._own
        self._threads = ThreadPoolExecutor(CALLS_MAX, thread_name_prefix="kvtier-redis")

    async def lengths(self, names: Sequence[str]) -> list[int | None]:
        return [length_of(reply) for reply in await self.ask([[b"STRLEN", key_of(name)] for name in names])]

    async def get(self, name: str, header: memoryview, body: memoryview, asking: bool = False) -> bool:
        wire = self._take()
        try:
            await self._begin(wire, asking)
            return await wire.ask_into([packed([b"GET", key_of(name)])], header, body)
        finally:
            self._give_back(wire)

    async def put(self, name: str, header: bytes, body: memoryview, asking: bool = False) -> None:
        command = packed([b"SET", key_of(name)], more=len(header) + body.nbytes) + header
        wire = self._take()
        try:
            await self._begin(wire, asking)
            await wire.send([command, body, END])
            raise_error(await wire.reply())
        finally:
            self._give_back(wire)

    async def delete(self, names: Sequence[str]) -> None:
        for reply in await self.ask([[b"UNLINK", key_of(name)] for name in names]):
            raise_error(reply)

    async def close(self) -> None:
        self._closed = True
        for wire in self._free:
            wire.close()
        self._free.clear()
        self._own.close()
        self._threads.shutdown(wait=False)

    async def ask(self, commands: Sequence[Sequence[bytes]], asking: bool = False) -> list[Reply]:
        """One round trip: all are sent before the first reply is read. Errors are among the replies."""
        if not commands:
            return []
        before = packed([b"ASKING"]) if asking else b""
        wire = self._take()
        try:
            await self._begin(wire)
            await wire.send([b"".join([before + packed(command) for command in commands])], len(commands) * (1 + asking))
            replies = [await wire.reply() for _ in range(len(commands) * (1 + asking))]
            return replies[1::2] if asking else replies
        finally:
            self._give_back(wire)

    async def _begin(self, wire: RespWire, asking: bool = False) -> None:
        """`asking`: of a node that is only about to have the slot of the next command."""
        if not wire.is_open:
            await wire.open()
        if asking:
            await wire.send([packed([b"ASKING"])])
            raise_error(await wire.reply())

    def _take(self) -> RespWire:
        """It may have to be opened; `_begin` does."""
        if self._free:
            return self._free.pop()
        return RespWire(self.address, self._login, self._tls, self._exchanges, self._threads)

    def _give_back(self, wire: RespWire) -> None:
        """Whoever is cancelled or fails leaves a wire that is not clean: the next one opens it again."""
        if self._closed or not wire.is_clean:
            wire.close()
        self._free.append(wire)


def key_of(name: str) -> bytes:
    return b"kvtier/" + name.encode()


def length_of(reply: Reply) -> int | None:
    if isinstance(reply, Corrupt):
        return None  # somebody else's: no value of ours is there
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
