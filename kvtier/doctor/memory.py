"""Memory: may the arena be pinned, does it lie on large pages, does it fit, and can it leave RAM?"""

import math
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from kvtier.config import MIB, format_size
from kvtier.doctor.facts import Facts
from kvtier.doctor.findings import Finding, bad, ok, warn

BESIDE_BYTES = 256 * MIB  # what kvtierd takes beside the arena, at most: its index grows with the blocks
UNLIMITED = 2**60  # what a cgroup says that has no limit is more
CAP_IPC_LOCK = 14
COLLAPSE_KERNEL = (6, 1)  # from there on large pages can be had without reserving them
HUGE = "sys/kernel/mm/transparent_hugepage"
CGROUPS = PurePosixPath("/sys/fs/cgroup")


def memlock(facts: Facts) -> Iterator[Finding]:
    """Locked memory: of kvtierd, and of the engines' workers, which register the arena with the GPU."""
    capacity = facts.settings.count("cpu.capacity")
    cure = "LimitMEMLOCK=infinity in the unit (`kvtier install-service` writes it so), or `ulimit -l unlimited`"
    if facts.state is not None:
        if facts.state["arena"]["pinned"]:
            yield ok(f"the arena of {format_size(facts.state['tiers']['cpu']['capacity_bytes'])} is pinned")
        elif facts.settings["cpu.pin"]:
            yield warn("the arena is not pinned: the kernel may swap it out", cure)
        else:
            yield ok("cpu.pin is off: the arena is not to be pinned")
        for engine in facts.state["engines"]:
            if unpinned := engine["unpinned_bytes"]:
                said = f"{format_size(unpinned)} of the arena are not registered by a worker of engine {engine['engine']}"
                yield warn(f"{said}: copied slowly", "raise the locked memory of the engine's processes: " + cure)
        return
    if not facts.settings["cpu.pin"]:
        yield ok("cpu.pin is off: nothing is to be locked")
        return
    hard = facts.limits.get("Max locked memory", ("", "unlimited"))[1]
    may_lock = int(facts.status("CapEff") or "0", 16) >> CAP_IPC_LOCK & 1
    if hard == "unlimited" or may_lock or int(hard) >= capacity:
        yield ok(f"{'unlimited' if may_lock or hard == 'unlimited' else format_size(int(hard))} may be locked here")
    else:
        said = f"{format_size(int(hard))} may be locked here, and the arena has {format_size(capacity)}"
        yield warn(f"{said}: it will not be pinned", cure)


def huge_pages(facts: Facts) -> Iterator[Finding]:
    capacity = facts.settings.count("cpu.capacity")
    reserve = f"start kvtierd early, or reserve pages: sysctl vm.nr_hugepages={math.ceil(capacity / (2 * MIB))}"
    if facts.state is not None:
        there, all_ = facts.state["arena"]["huge_bytes"], facts.state["tiers"]["cpu"]["capacity_bytes"]
        if there >= all_:
            yield ok("the arena lies on 2 MiB pages")
        else:
            said = f"{format_size(there)} of the arena's {format_size(all_)} lie on 2 MiB pages"
            yield warn(f"{said}: the rest is read from drives up to 3 times slower", reserve)
        return
    free = meminfo(facts, "HugePages_Free") * meminfo(facts, "Hugepagesize")
    if free >= capacity:
        yield ok(f"{format_size(free)} are reserved as large pages: enough for the arena")
    elif not facts.system.names(HUGE):
        yield warn("this kernel has no transparent huge pages", reserve)
    elif kernel_version(facts.system.kernel()) < COLLAPSE_KERNEL:
        yield warn(f"Linux {facts.system.kernel()} makes no large pages on demand, as 6.1 does", reserve)
    else:
        chosen = re.search(r"\[(\w+)\]", facts.system.read(f"{HUGE}/enabled"))
        mode = chosen[1] if chosen else "unknown"
        yield ok(f"Linux {facts.system.kernel()} makes large pages on demand (transparent_hugepage: {mode})")


def room(facts: Facts) -> Iterator[Finding]:
    """Whether the arena fits what is free: populating what isn't there ends in the OOM killer."""
    capacity = facts.settings.count("cpu.capacity")
    available = meminfo(facts, "MemAvailable")
    if facts.state is not None:
        yield ok(f"the arena is taken; {format_size(available)} more are available")
    elif capacity + BESIDE_BYTES <= available:
        yield ok(f"cpu.capacity = {format_size(capacity)} fits the {format_size(available)} that are available")
    else:
        said = f"cpu.capacity = {format_size(capacity)}, and {format_size(available)} of memory are available"
        yield bad(said, "lower cpu.capacity, or free memory")


def cgroup(facts: Facts) -> Iterator[Finding]:
    """The least of the limits of our group and of all above it."""
    needs = facts.settings.count("cpu.capacity") + BESIDE_BYTES
    limits = cgroup_limits(facts)
    if not limits:
        yield ok("no cgroup limits the memory of kvtierd")
        return
    name, limit = min(limits.items(), key=lambda one: one[1])
    said = f"{name} = {format_size(limit)}, and kvtierd needs {format_size(needs)} for this cpu.capacity"
    if limit >= needs:
        yield ok(said)
    elif name.endswith("high"):
        yield warn(f"{said}: it is slowed down there", "raise MemoryHigh= or lower cpu.capacity")
    else:
        yield bad(f"{said}: it is killed there", "raise MemoryMax= or the container's limit, or lower cpu.capacity")


def swap(facts: Facts) -> Iterator[Finding]:
    swaps = [line.split()[0] for line in facts.system.read("/proc/swaps").splitlines()[1:] if line]
    on_disk = [name for name in swaps if not name.startswith("/dev/zram")]
    pinned = bool(facts.state["arena"]["pinned"]) if facts.state is not None else bool(facts.settings["cpu.pin"])
    if not on_disk:
        yield ok("none" if not swaps else "only in memory (zram)")
    elif pinned:
        yield ok(f"{', '.join(on_disk)}: the arena {'is' if facts.state is not None else 'is to be'} pinned and stays out")
    else:
        said = f"{', '.join(on_disk)}, and the arena is not pinned: conversations may lie there, unencrypted"
        yield warn(said, "set cpu.pin = true and allow locked memory, or `swapoff -a`, or encrypt the swap")


def core_dumps(facts: Facts) -> Iterator[Finding]:
    """The arena is never in one, but what else kvtierd has in its memory would be: names, keys, a part of a block."""
    if facts.settings["security.dumpable"]:
        yield warn("security.dumpable is on: kvtierd leaves core files, with keys in them", "set security.dumpable = false")
    elif facts.pid is None:
        yield ok("kvtierd leaves none: security.dumpable is off")
    elif facts.limits.get("Max core file size", ("0", "0"))[0] == "0":
        yield ok(f"process {facts.pid} leaves none")
    else:
        yield warn(f"process {facts.pid} may leave a core file, with keys in it", "restart kvtierd: it has older settings")


# --- what the kernel says ------------------------------------------------------------------------------------


def meminfo(facts: Facts, name: str) -> int:
    """Bytes, or a count; 0 where the kernel doesn't say."""
    found = re.search(rf"^{name}:\s+(\d+)( kB)?", facts.system.read("/proc/meminfo"), re.MULTILINE)
    return 0 if found is None else int(found[1]) * (1024 if found[2] else 1)


def kernel_version(release: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", release)
    return (0, 0) if found is None else (int(found[1]), int(found[2]))


def cgroup_limits(facts: Facts) -> dict[str, int]:
    """By file, as far as there are limits: version 2's, and version 1's where memory is still its."""
    found: dict[str, int] = {}
    for line in facts.system.read(f"{facts.proc}/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        folders: tuple[PurePosixPath, ...]
        files: tuple[str, ...]
        if number == "0":
            folders, files = (CGROUPS, CGROUPS / "unified"), ("memory.max", "memory.high")
        elif "memory" in controllers.split(","):
            folders, files = (CGROUPS / "memory",), ("memory.limit_in_bytes",)
        else:
            continue
        group = PurePosixPath("/") / path
        for above in (group, *group.parents):
            for folder in folders:
                for file in files:
                    name = folder / above.relative_to("/") / file
                    limit = facts.system.number(str(name))
                    if limit is not None and limit < UNLIMITED:
                        found[str(name)] = limit
    return found
