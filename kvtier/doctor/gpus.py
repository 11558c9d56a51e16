"""GPUs: their driver, how they are attached, and whether the arena is near. /sys and /proc are read, no driver is asked."""

from collections.abc import Iterator
from dataclasses import dataclass

from kvtier import topology
from kvtier.doctor.facts import Facts
from kvtier.doctor.findings import Finding, bad, ok, warn
from kvtier.doctor.system import System
from kvtier.errors import ConfigError

DEVICES = "/sys/bus/pci/devices"
DRIVER = "/proc/driver/nvidia"
NONE = "there is no NVIDIA GPU: engines on the CPU only"


@dataclass(frozen=True)
class Gpu:
    address: str
    model: str
    node: int  # topology.ANYWHERE: the kernel doesn't know
    width: int  # lanes in use; 0: the kernel doesn't say
    width_max: int
    speed: str  # of a lane
    speed_max: str

    @property
    def name(self) -> str:
        return f"{self.model} at {self.address}" if self.model else f"the GPU at {self.address}"


def gpus_of(system: System) -> list[Gpu]:
    found = []
    for address in system.names(DEVICES):
        device = f"{DEVICES}/{address}"
        is_display = system.read(f"{device}/class").startswith(topology.DISPLAY)
        if is_display and system.read(f"{device}/vendor") == topology.NVIDIA:
            node = system.number(f"{device}/numa_node")
            found.append(
                Gpu(
                    address,
                    model_of(system, address),
                    topology.ANYWHERE if node is None else node,
                    system.number(f"{device}/current_link_width") or 0,
                    system.number(f"{device}/max_link_width") or 0,
                    system.read(f"{device}/current_link_speed"),
                    system.read(f"{device}/max_link_speed"),
                )
            )
    return found


def model_of(system: System, address: str) -> str:
    for line in system.read(f"{DRIVER}/gpus/{address}/information").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "Model":
            return value.strip()
    return ""


def driver(facts: Facts) -> Iterator[Finding]:
    gpus = gpus_of(facts.system)
    version = facts.system.read(f"{DRIVER}/version").partition("\n")[0].removeprefix("NVRM version:").strip()
    wanted = facts.settings.count("gpu.capacity")
    if version:
        yield ok(version)
    elif gpus:
        said = f"{len(gpus)} NVIDIA GPU{'s' * (len(gpus) > 1)}, and no driver of NVIDIA's is loaded"
        yield (bad if wanted else warn)(said, "install the driver; until then engines run on the CPU")
    elif wanted:
        yield bad("gpu.capacity is set, and there is no NVIDIA GPU", "set gpu.capacity = 0")
    else:
        yield ok(NONE)


def link(facts: Facts) -> Iterator[Finding]:
    """The PCIe link of each. An idle GPU lowers the speed of its lanes, but never their number."""
    gpus = gpus_of(facts.system)
    if not gpus:
        yield ok(NONE)
    for gpu in gpus:
        if not gpu.width or not gpu.width_max:
            yield ok(f"{gpu.name}: its link is not shown, as in a virtual machine")
        elif gpu.width < gpu.width_max:
            times = gpu.width_max / gpu.width
            said = f"{gpu.name} has {gpu.width} of {gpu.width_max} lanes: loads take {times:g} times as long"
            yield warn(
                said, "move it to a slot with all lanes, or look for a riser, a switch or a BIOS setting that takes them"
            )
        else:
            idle = "" if gpu.speed == gpu.speed_max else f" (now {gpu.speed}: idle, or a slower slot)"
            yield ok(f"{gpu.name}: {gpu.width} lanes of {gpu.speed_max}{idle}")


def numa(facts: Facts) -> Iterator[Finding]:
    """Whether the arena lies on the node of the GPUs."""
    nodes = {gpu.node for gpu in gpus_of(facts.system)}
    setting = facts.settings.text("cpu.numa")
    count = len([name for name in facts.system.names("/sys/devices/system/node") if name[4:].isdecimal()])
    if count < 2:
        yield ok("one node")
        return
    try:
        arena = topology.arena_node(setting, facts.system.path("/sys"))
    except ConfigError as error:
        yield bad(str(error), "set cpu.numa = auto")
        return
    if arena >= count:
        yield bad(f"cpu.numa = {arena}, and there are {count} nodes", "set cpu.numa = auto")
    elif not nodes:
        yield ok(f"{count} nodes, and no GPU that the arena should be near")
    elif topology.ANYWHERE in nodes:
        yield warn("the kernel doesn't know the GPUs' nodes", "name the node of the GPUs in cpu.numa; `nvidia-smi topo -m`")
    elif nodes == {arena}:
        yield ok(f"the arena is placed on node {arena}, where the GPUs are")
    elif arena == topology.ANYWHERE:
        said = f"GPUs are on nodes {', '.join(map(str, sorted(nodes)))}, and the arena lies where the kernel puts it"
        yield warn(
            said, "a kvtierd for each node with cpu.numa = its number, or accept that half of all copies cross sockets"
        )
    else:
        said = f"the arena is placed on node {arena}, GPUs are on {', '.join(map(str, sorted(nodes)))}"
        yield warn(f"{said}: copies cross sockets", "set cpu.numa = auto")
