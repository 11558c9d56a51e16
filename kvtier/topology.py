"""Where a machine's GPUs are attached, as the kernel says in /sys. No driver is asked, so it works before any is loaded."""

from pathlib import Path

from kvtier.errors import ConfigError

ANYWHERE = -1  # instead of a node: the kernel chooses
NVIDIA = "0x10de"
DISPLAY = "0x03"  # how the PCI class of a GPU begins, with and without outputs


def arena_node(setting: str, sys: Path = Path("/sys")) -> int:
    """The NUMA node that `cpu.numa` = `setting` means on this machine, or ANYWHERE. ConfigError: it means nothing."""
    if setting == "none":
        return ANYWHERE
    if setting == "auto":
        nodes = gpu_nodes(sys)
        # With one node there is nothing to choose, and a container may not even be allowed to ask for it.
        return nodes.pop() if len(nodes) == 1 and _node_count(sys) > 1 else ANYWHERE
    if not setting.isdecimal():
        raise ConfigError(f"cpu.numa = {setting!r} is none of auto, none, and a node's number")
    return int(setting)


def gpu_nodes(sys: Path) -> set[int]:
    """The NUMA nodes of all NVIDIA GPUs; ANYWHERE among them where the kernel doesn't know one's."""
    return {
        int(_read(device / "numa_node") or ANYWHERE)
        for device in (sys / "bus" / "pci" / "devices").glob("*")
        if _read(device / "vendor") == NVIDIA and _read(device / "class").startswith(DISPLAY)
    }


def _node_count(sys: Path) -> int:
    return len(list((sys / "devices" / "system" / "node").glob("node[0-9]*")))


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
