"""On which NUMA node the arena goes, by what /sys says of the machine's GPUs."""

from pathlib import Path

import pytest

from kvtier.errors import ConfigError
from kvtier.topology import ANYWHERE, arena_node, gpu_nodes

H100, VGA, NVSWITCH, NIC = "0x030200", "0x030000", "0x068000", "0x020000"
NVIDIA, INTEL = "0x10de", "0x8086"


def machine(root: Path, nodes: int, *devices: tuple[str, str, str]) -> Path:
    """A /sys with so many NUMA nodes and (vendor, class, node) devices."""
    for number in range(nodes):
        (root / "devices" / "system" / "node" / f"node{number}").mkdir(parents=True)
    for number, (vendor, kind, node) in enumerate(devices):
        device = root / "bus" / "pci" / "devices" / f"0000:{number:02x}:00.0"
        device.mkdir(parents=True)
        for name, text in (("vendor", vendor), ("class", kind), ("numa_node", node)):
            (device / name).write_text(text + "\n")
    return root


def test_auto_is_the_node_that_all_nvidia_gpus_share(tmp_path):
    sys = machine(tmp_path, 2, (NVIDIA, H100, "1"), (NVIDIA, VGA, "1"), (NVIDIA, NVSWITCH, "0"), (INTEL, NIC, "0"))
    assert gpu_nodes(sys) == {1}
    assert arena_node("auto", sys) == 1


@pytest.mark.parametrize(
    ("nodes", "devices"),
    [
        (2, [(NVIDIA, H100, "0"), (NVIDIA, H100, "1")]),
        (2, [(NVIDIA, H100, "-1")]),
        (2, [(INTEL, VGA, "1")]),
        (2, []),
        (1, [(NVIDIA, H100, "0")]),
    ],
    ids=["on two nodes", "on an unknown node", "of another make", "none", "but one node"],
)
def test_auto_leaves_it_to_the_kernel_when_gpus_are(tmp_path, nodes, devices):
    assert arena_node("auto", machine(tmp_path, nodes, *devices)) == ANYWHERE


def test_a_machine_without_sys_is_no_error(tmp_path):
    assert arena_node("auto", tmp_path / "nowhere") == ANYWHERE


def test_the_user_may_say_which_node_or_that_it_is_all_the_same(tmp_path):
    sys = machine(tmp_path, 2, (NVIDIA, H100, "1"))
    assert arena_node("0", sys) == 0
    assert arena_node("none", sys) == ANYWHERE


@pytest.mark.parametrize("setting", ["", "-1", "first", "0,1", "1.0"])
def test_what_is_no_node_is_refused_by_name(tmp_path, setting):
    with pytest.raises(ConfigError, match=r"cpu\.numa"):
        arena_node(setting, tmp_path)
