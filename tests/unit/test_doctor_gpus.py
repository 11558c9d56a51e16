"""kvtier doctor on GPUs, of machines that are made up."""

import pytest
from made_up_machine import Machine, facts_of, only

from kvtier.doctor import gpus
from kvtier.doctor.findings import ok

DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: 12"


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


def gpu(
    machine: Machine, address: str = "0000:17:00.0", node: int = 0, width: int = 16, speed: str = "32.0 GT/s PCIe"
) -> None:
    files = {"vendor": "0x10de", "class": "0x030200", "numa_node": node, "current_link_width": width,
             "max_link_width": 16, "current_link_speed": speed, "max_link_speed": "32.0 GT/s PCIe"}  # fmt: skip
    for name, text in files.items():
        machine.put(f"/sys/bus/pci/devices/{address}/{name}", f"{text}\n")
    machine.put(f"/proc/driver/nvidia/gpus/{address}/information", "Model: \t\t NVIDIA H100 PCIe\nIRQ:   \t\t 127\n")
    machine.put("/proc/driver/nvidia/version", DRIVER)


def nodes(machine: Machine, n: int) -> None:
    for node in range(n):
        machine.folder(f"/sys/devices/system/node/node{node}")


def test_a_machine_without_gpus_is_a_good_one(machine):
    facts = facts_of(machine)
    assert [only(check, facts) for check in (gpus.driver, gpus.link)] == [ok(gpus.NONE)] * 2


def test_a_gpu_tier_without_a_gpu_is_bad(machine):
    found = only(gpus.driver, facts_of(machine, gpu__capacity="1 GiB"))
    assert (found.level, found.cure) == ("bad", "set gpu.capacity = 0")


def test_the_driver_is_named(machine):
    gpu(machine)
    said = "NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024"
    assert only(gpus.driver, facts_of(machine)) == ok(said)


def test_a_gpu_without_a_driver_is_a_warning_and_bad_where_there_is_to_be_a_tier(machine):
    gpu(machine)
    machine.path("/proc/driver/nvidia/version").unlink()
    assert only(gpus.driver, facts_of(machine)).level == "warn"
    assert only(gpus.driver, facts_of(machine, gpu__capacity="1 GiB")).level == "bad"


def test_other_devices_are_no_gpus(machine):
    gpu(machine)
    machine.put("/sys/bus/pci/devices/0000:17:00.0/class", "0x020000")  # a network card of NVIDIA's
    gpu(machine, "0000:18:00.0")
    machine.put("/sys/bus/pci/devices/0000:18:00.0/vendor", "0x1002")  # somebody else's GPU
    assert gpus.gpus_of(machine) == []


def test_a_link_with_all_its_lanes_is_good(machine):
    gpu(machine)
    assert only(gpus.link, facts_of(machine)) == ok("NVIDIA H100 PCIe at 0000:17:00.0: 16 lanes of 32.0 GT/s PCIe")


def test_a_link_with_fewer_lanes_is_a_warning(machine):
    gpu(machine, width=4)
    found = only(gpus.link, facts_of(machine))
    assert found.level == "warn"
    assert found.said == "NVIDIA H100 PCIe at 0000:17:00.0 has 4 of 16 lanes: loads take 4 times as long"


def test_a_gpu_that_saves_power_is_no_slow_one(machine):
    gpu(machine, speed="2.5 GT/s PCIe")
    found = only(gpus.link, facts_of(machine))
    assert found.level == "ok" and found.said.endswith("(now 2.5 GT/s PCIe: idle, or a slower slot)")


def test_a_link_that_is_not_shown_is_said_to_be_so(machine):
    gpu(machine)
    machine.path("/sys/bus/pci/devices/0000:17:00.0/current_link_width").unlink()
    assert only(gpus.link, facts_of(machine)).said.endswith("its link is not shown, as in a virtual machine")


def test_each_gpu_has_a_line(machine):
    gpu(machine)
    gpu(machine, "0000:ca:00.0", width=8)
    assert [found.level for found in gpus.link(facts_of(machine))] == ["ok", "warn"]


# --- NUMA ----------------------------------------------------------------------------------------------------


def test_of_one_node_nothing_is_to_be_said(machine):
    nodes(machine, 1)
    gpu(machine)
    assert only(gpus.numa, facts_of(machine)) == ok("one node")


def test_an_arena_beside_all_gpus_is_good(machine):
    nodes(machine, 2)
    gpu(machine, node=1)
    assert only(gpus.numa, facts_of(machine)) == ok("the arena is placed on node 1, where the GPUs are")


def test_an_arena_on_the_other_node_is_a_warning(machine):
    nodes(machine, 2)
    gpu(machine, node=1)
    found = only(gpus.numa, facts_of(machine, cpu__numa="0"))
    assert (found.level, found.cure) == ("warn", "set cpu.numa = auto")


def test_gpus_on_both_nodes_are_a_warning(machine):
    nodes(machine, 2)
    gpu(machine, node=0)
    gpu(machine, "0000:ca:00.0", node=1)
    found = only(gpus.numa, facts_of(machine))
    assert found.level == "warn" and found.said.startswith("GPUs are on nodes 0, 1, and the arena lies where")


def test_a_node_that_the_kernel_does_not_know_is_a_warning(machine):
    nodes(machine, 2)
    gpu(machine, node=-1)
    assert only(gpus.numa, facts_of(machine)).level == "warn"


def test_a_node_that_is_not_there_is_bad(machine):
    nodes(machine, 2)
    assert only(gpus.numa, facts_of(machine, cpu__numa="7")).said == "cpu.numa = 7, and there are 2 nodes"


def test_a_setting_that_means_nothing_is_bad(machine):
    nodes(machine, 2)
    assert only(gpus.numa, facts_of(machine, cpu__numa="near")).level == "bad"
