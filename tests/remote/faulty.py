"""A kind of remote behind proxies, one on each way to its servers; and servers that take no writes."""

import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from remote.kinds import Kind
from remote.proxy import FaultProxy
from remote.servers import LOOPBACK, Absent, Cluster, Redis, SeaweedFS, eventually

PLACE = re.compile(r"\b(127\.0\.0\.1|localhost):(\d+)")


class Network:
    """All proxies of a kind, switched together, by the names of FaultProxy's methods. `kind` leads through them."""

    def __init__(self, kind: Kind, proxies: list[FaultProxy]) -> None:
        self.kind, self._proxies = kind, proxies

    def set(self, fault: str, *given: float) -> None:
        for proxy in self._proxies:
            getattr(proxy, fault)(*given)

    @property
    def flipped(self) -> int:
        """Pieces."""
        return sum(proxy.flipped for proxy in self._proxies)


@contextmanager
def behind_proxies(kind: Kind) -> Iterator[Network]:
    """Every address on loopback in its URL and settings leads through a proxy. A kind without a server has no network."""
    with ExitStack() as undone:
        made: dict[str, FaultProxy] = {}

        def proxy_of(place: str, *where: object) -> FaultProxy:
            if place not in made:
                made[place] = undone.enter_context(FaultProxy(*where))  # type: ignore[arg-type]
            return made[place]

        def by_port(found: re.Match[str]) -> str:
            return f"{found[1]}:{proxy_of(found[2], LOOPBACK, int(found[2])).port}"

        server, url = kind.server, PLACE.sub(by_port, kind.url)
        if isinstance(server, Redis) and str(server.socket) in url:
            url = url.replace(str(server.socket), proxy_of(url, str(server.socket)).path)
        settings = {name: PLACE.sub(by_port, said) if isinstance(said, str) else said
                    for name, said in kind.settings.items()}  # fmt: skip
        if isinstance(server, Cluster):
            ports = {node: proxy_of(str(node.port), LOOPBACK, node.port).port for node in server.nodes}
            undone.enter_context(_announced(server, ports))
        yield Network(replace(kind, url=url, settings=settings), list(made.values()))


@contextmanager
def _announced(cluster: Cluster, ports: dict[Redis, int]) -> Iterator[None]:
    """The nodes of a cluster say of each other where they are; now they name the proxies."""

    def announce() -> None:
        for node, port in ports.items():
            node.say("CONFIG", "SET", "cluster-announce-port", str(port))

    def all_know() -> bool:
        said = [node.say("CLUSTER", "NODES") for node in cluster.nodes]
        return all(f"{LOOPBACK}:{port}@" in one for one in said for port in ports.values())

    def again() -> None:
        former_start()
        announce()
        eventually(all_know, "the nodes name the proxies")

    former_start = cluster.start
    announce()
    eventually(all_know, "the nodes name the proxies")
    cluster.start = again  # type: ignore[method-assign]
    yield


# --- servers that take no writes ---------------------------------------------------------------------------------


@contextmanager
def full(kind: Kind) -> Iterator[None]:
    """Absent: no way is known to fill it."""
    nodes = _redis_nodes(kind)
    if not nodes:
        raise Absent("no way is known to fill it")
    with ExitStack() as undone:
        for node in nodes:
            undone.callback(node.say, "CONFIG", "SET", "maxmemory", "1gb")
            node.say("CONFIG", "SET", "maxmemory-policy", "noeviction")
            node.say("CONFIG", "SET", "maxmemory", "1")
        yield


@contextmanager
def read_only(kind: Kind) -> Iterator[None]:
    """Absent: no way is known to take the right to write from us."""
    server, nodes = kind.server, _redis_nodes(kind)
    with ExitStack() as undone:
        if isinstance(server, SeaweedFS):
            undone.callback(_allow, server, "Admin", "Read", "Write", "List", "Tagging")
            _allow(server, "Read", "List")
        elif isinstance(server, Redis):
            undone.callback(server.say, "REPLICAOF", "NO", "ONE")
            server.say("REPLICAOF", LOOPBACK, "1")
        elif nodes:
            for node in nodes:
                undone.callback(node.say, "CONFIG", "SET", "min-replicas-to-write", "0")
                node.say("CONFIG", "SET", "min-replicas-to-write", "1")
        else:
            raise Absent("no way is known to take the right to write")
        yield


def _redis_nodes(kind: Kind) -> list[Redis]:
    match kind.server:
        case Cluster(nodes=nodes):
            return nodes
        case Redis() as server:
            return [server]
    return []


def _allow(server: SeaweedFS, *actions: str) -> None:
    """It reads its file again when it is told to, and works by it a moment later."""
    assert server.process is not None
    server.allow(list(actions))
    server.process.send_signal(signal.SIGHUP)
    eventually(lambda: server.answers() == ("Write" in actions), "it knows who may write")
