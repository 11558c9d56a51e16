"""All checks, declared once: in this order they are shown."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kvtier.doctor import access, drives, engines, gpus, memory, node
from kvtier.doctor.facts import Facts
from kvtier.doctor.findings import Finding


@dataclass(frozen=True)
class Check:
    subject: str
    name: str
    look: Callable[[Facts], Iterator[Finding]]


CHECKS = (
    Check("node", "kvtierd", node.daemon),
    Check("node", "settings", node.settings),
    Check("node", "versions", node.versions),
    Check("node", "kernel", node.kernel),
    Check("node", "libcrypto", node.libcrypto),
    Check("node", "codecs", node.codecs),
    Check("node", "clock", node.clock),
    Check("memory", "room", memory.room),
    Check("memory", "cgroup", memory.cgroup),
    Check("memory", "memlock", memory.memlock),
    Check("memory", "huge pages", memory.huge_pages),
    Check("memory", "swap", memory.swap),
    Check("memory", "core dumps", memory.core_dumps),
    Check("gpus", "driver", gpus.driver),
    Check("gpus", "PCIe link", gpus.link),
    Check("gpus", "NUMA", gpus.numa),
    Check("drives", "folders", drives.folders),
    Check("drives", "direct I/O", drives.direct_io),
    Check("drives", "io_uring", drives.io_uring),
    Check("drives", "rating", drives.rating),
    Check("drives", "space", drives.space),
    Check("engines", "hashes", engines.hashes),
    Check("engines", "seeds", engines.seeds),
    Check("engines", "connected", engines.connected),
    Check("access", "sockets", access.sockets),
    Check("access", "group", access.group),
    Check("access", "secrets", access.secrets),
    Check("access", "encryption", access.encryption),
    Check("access", "ports", access.ports),
)


def examine(facts: Facts) -> Iterator[tuple[Check, Finding]]:
    """What all of them say."""
    for check in CHECKS:
        for finding in check.look(facts):
            yield check, finding
