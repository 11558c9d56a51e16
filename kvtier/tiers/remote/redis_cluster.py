"""ClusterRemote: redis+cluster://, a Redis or Valkey cluster. Each node is a RedisRemote of its own.

    redis+cluster://[[user]:password@]host[:port][,host[:port] ...]

Which node has which of the 16384 slots is asked of any node that answers, the given ones first. It is asked again when a
node says MOVED or can't be reached, no more often than REFRESH_S, and by one for all that wait. ASK holds for one
command. A node that is gone is an error only to those whose slots it had.
"""

import asyncio
import binascii
import itertools
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar
from urllib.parse import urlsplit

from kvtier.errors import ConfigError
from kvtier.tiers.remote.base import CALLS_MAX, RemoteError, Unreachable
from kvtier.tiers.remote.exchanges import Exchanges
from kvtier.tiers.remote.redis import ESCAPED, RedisRemote, key_of, length_of, login_of, port_of, raise_error, split, tls_of
from kvtier.tiers.remote.resp import Login, Moved, Reply
from kvtier.tiers.remote.wire import Address

SLOTS = 16384
NODES_MAX = 2000  # Redis itself ends at 1000; those that moved away go with the next look at the slots
HOPS_MAX = 5  # from node to node, for one command
REFRESH_S = 1.0
NODE_S = 1.0  # for a node to say who has which slot

T = TypeVar("T")


class ClusterRemote:
    def __init__(self, seeds: Sequence[Address], login: Login, tls: ssl.SSLContext | None) -> None:
        self._seeds, self._login, self._tls = list(seeds), login, tls
        self._nodes: dict[Address, RedisRemote] = {}
        self._exchanges = Exchanges(CALLS_MAX)
        self._slots: list[Address | None] = [None] * SLOTS
        self._is_stale = True
        self._again_at = float("-inf")
        self._unknown: RemoteError | None = Unreachable("nobody was asked yet")  # why no slot is known
        self._refreshing: asyncio.Task[None] | None = None

    async def lengths(self, names: Sequence[str]) -> list[int | None]:
        return [length_of(reply) for reply in await self._ask(b"STRLEN", names)]

    async def get(self, name: str, header: memoryview, body: memoryview) -> bool:
        return await self._follow(name, lambda node, asking: node.get(name, header, body, asking))

    async def put(self, name: str, header: bytes, body: memoryview) -> None:
        await self._follow(name, lambda node, asking: node.put(name, header, body, asking))

    async def delete(self, names: Sequence[str]) -> None:
        for reply in await self._ask(b"UNLINK", names):
            raise_error(reply)

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])
        for node in self._nodes.values():
            await node.close()
        self._exchanges.close()

    # --- commands ------------------------------------------------------------------------------------------------

    async def _ask(self, verb: bytes, names: Sequence[str]) -> list[Reply]:
        """One round trip to each node that has some of them, all at once; those that moved are followed one by one."""
        await self._refresh()
        groups: dict[Address, list[int]] = {}
        for number, name in enumerate(names):
            groups.setdefault(self._address_of(name), []).append(number)

        async def ask_node(address: Address, numbers: list[int]) -> list[Reply]:
            return await self._node(address).ask([[verb, key_of(names[number])] for number in numbers])

        answers = await self._together([ask_node(address, numbers) for address, numbers in groups.items()])
        replies: dict[int, Reply] = dict(zip(itertools.chain(*groups.values()), itertools.chain(*answers), strict=True))
        for number in [number for number, reply in replies.items() if isinstance(reply, Moved)]:
            replies[number] = await self._ask_one(verb, names[number])
        return [replies[number] for number in range(len(names))]

    async def _ask_one(self, verb: bytes, name: str) -> Reply:
        async def ask_node(node: RedisRemote, asking: bool) -> Reply:
            (reply,) = await node.ask([[verb, key_of(name)]], asking)
            raise_error(reply)
            return reply

        return await self._follow(name, ask_node)

    async def _together(self, asked: list[Awaitable[list[Reply]]]) -> list[list[Reply]]:
        """When one can't be reached, nobody is left asking behind."""
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                self._is_stale = True
                raise answer
        return [answer for answer in answers if isinstance(answer, list)]

    async def _follow(self, name: str, call: Callable[[RedisRemote, bool], Awaitable[T]]) -> T:
        await self._refresh()
        address, asking = self._address_of(name), False
        for _ in range(HOPS_MAX):
            try:
                return await call(self._node(address), asking)
            except Moved as moved:
                address, asking = Address(moved.host, moved.port), moved.asking
                if not asking:
                    self._slots[moved.slot] = address
                    self._is_stale = True
            except Unreachable:
                self._is_stale = True
                raise
        raise Unreachable(f"slot {slot_of(name)} is nowhere for long")

    def _node(self, address: Address) -> RedisRemote:
        if address not in self._nodes:
            if len(self._nodes) >= NODES_MAX:
                self._is_stale = True
                raise Unreachable(f"more than {NODES_MAX} nodes")
            self._nodes[address] = RedisRemote(address, self._login, self._tls, self._exchanges)
        return self._nodes[address]

    def _address_of(self, name: str) -> Address:
        address = self._slots[slot_of(name)]
        if address is None:
            self._is_stale = True
            raise Unreachable(f"no node has slot {slot_of(name)}")
        return address

    # --- the slots -----------------------------------------------------------------------------------------------

    async def _refresh(self) -> None:
        """Waits only while nothing is known: later, an old map is right for most, and MOVED says the rest."""
        if self._is_stale and self._refreshing is None and time.monotonic() >= self._again_at:
            self._refreshing = asyncio.create_task(self._learn_slots())
        if self._unknown is not None and self._refreshing is not None:
            await asyncio.wait([self._refreshing])  # whoever gives up leaves it to the others
        if self._unknown is not None:
            raise type(self._unknown)(*self._unknown.args)

    async def _learn_slots(self) -> None:
        """From the first node that answers."""
        try:
            for address in dict.fromkeys([*self._nodes, *self._seeds]):
                try:
                    async with asyncio.timeout(NODE_S):
                        (reply,) = await self._node(address).ask([[b"CLUSTER", b"SLOTS"]])
                    raise_error(reply)
                    self._slots = slots_of(reply, address)
                except TimeoutError:
                    self._failed_to_learn(Unreachable(f"{address}: no answer in {NODE_S} s"))
                except RemoteError as error:
                    self._failed_to_learn(error)
                else:
                    self._unknown, self._is_stale = None, False
                    await self._close_all_but({*self._slots, *self._seeds})
                    break
        finally:
            self._again_at = time.monotonic() + REFRESH_S
            self._refreshing = None

    def _failed_to_learn(self, error: RemoteError) -> None:
        if self._unknown is not None:
            self._unknown = error

    async def _close_all_but(self, addresses: set[Address | None]) -> None:
        for address in self._nodes.keys() - addresses:
            await self._nodes.pop(address).close()


def slots_of(reply: Reply, asked: Address) -> list[Address | None]:
    """The master of each slot, from CLUSTER SLOTS: [[first, last, [host, port, ...], replicas ...] ...]."""
    slots: list[Address | None] = [None] * SLOTS
    named = 0
    if not isinstance(reply, list):
        raise Unreachable(f"{asked}: no slots")
    for row in reply:
        match row:
            case [int(first), int(last), [host, int(port), *_], *_] if 0 <= first <= last < SLOTS:
                if (named := named + last + 1 - first) > SLOTS:
                    raise Unreachable(f"{asked}: slots that are named twice")
                name = host.decode(errors="replace") if isinstance(host, bytes) else ""
                slots[first : last + 1] = [Address(name or asked.host, port)] * (last + 1 - first)
            case _:
                raise Unreachable(f"{asked}: slots that nobody understands")
    return slots


def slot_of(name: str) -> int:
    """No name has braces: all of it counts."""
    return binascii.crc_hqx(key_of(name), 0) % SLOTS


def connect(url: str, settings: Mapping[str, object]) -> ClusterRemote:
    scheme, _, rest = url.partition("://")
    login, _, hosts = rest.rpartition("@")
    seeds, first = [], split(url)
    for host in hosts.rstrip("/").split(","):
        parts = urlsplit(f"{scheme}://{host}")
        if not parts.hostname or parts.path:
            raise ConfigError(f"{scheme}:// needs hosts, and has no databases: {scheme}://host:port,host:port")
        seeds.append(Address(parts.hostname, port_of(parts)))
    is_tls = scheme.startswith("rediss")
    named = urlsplit(f"{scheme}://{login}@host") if login else first
    if login and named.hostname != "host":
        raise ConfigError(f"{scheme}:// has a login that nobody understands; {ESCAPED}")
    return ClusterRemote(seeds, login_of(named, settings), tls_of(is_tls, settings))
