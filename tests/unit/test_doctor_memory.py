"""kvtier doctor on memory, of machines that are made up."""

import pytest
from made_up_machine import PID, Machine, facts_of, only, running

from kvtier.config import GIB, MIB
from kvtier.doctor import memory
from kvtier.doctor.findings import ok


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


# --- locked memory -------------------------------------------------------------------------------------------


def test_memory_that_may_be_locked_without_limit_is_good(machine):
    assert only(memory.memlock, facts_of(machine)) == ok("unlimited may be locked here")


def test_a_limit_below_the_arena_is_a_warning_with_the_setting_that_cures_it(machine):
    machine.limits(locked=str(8 * MIB))
    found = only(memory.memlock, facts_of(machine))
    assert (found.level, found.said) == ("warn", "8 MiB may be locked here, and the arena has 4 GiB: it will not be pinned")
    assert "LimitMEMLOCK=infinity" in found.cure


def test_a_limit_above_the_arena_is_good(machine):
    machine.limits(locked=str(8 * GIB))
    assert only(memory.memlock, facts_of(machine)) == ok("8 GiB may be locked here")


def test_who_has_the_capability_needs_no_limit(machine):
    machine.limits(locked="65536", capabilities=1 << memory.CAP_IPC_LOCK)
    assert only(memory.memlock, facts_of(machine)).level == "ok"


def test_where_nothing_is_to_be_pinned_no_limit_matters(machine):
    machine.limits(locked="0")
    assert only(memory.memlock, facts_of(machine, cpu__pin=False)).level == "ok"


def test_of_a_running_daemon_it_counts_what_it_has(machine):
    machine.limits(locked="0")
    assert only(memory.memlock, facts_of(machine, running())) == ok("the arena of 4 GiB is pinned")


def test_an_arena_that_is_not_pinned_is_a_warning(machine):
    state = running(arena={"huge_bytes": 4 * GIB, "pinned": False, "notes": []})
    assert only(memory.memlock, facts_of(machine, state)).level == "warn"


def test_a_worker_that_could_not_register_the_arena_is_named(machine):
    state = running(engines=[{"engine": "a", "unpinned_bytes": GIB}])
    _, found = memory.memlock(facts_of(machine, state))
    assert found.level == "warn"
    assert found.said == "1 GiB of the arena are not registered by a worker of engine a: copied slowly"


# --- large pages ---------------------------------------------------------------------------------------------


def test_a_kernel_of_today_makes_large_pages_by_itself(machine):
    found = only(memory.huge_pages, facts_of(machine))
    assert found == ok("Linux 6.8.0-generic makes large pages on demand (transparent_hugepage: madvise)")


def test_an_older_kernel_wants_them_reserved(machine):
    machine.release = "5.15.0-91"
    found = only(memory.huge_pages, facts_of(machine))
    assert found.level == "warn" and "vm.nr_hugepages=2048" in found.cure


def test_reserved_pages_are_enough_on_any_kernel(machine):
    machine.release = "5.15.0-91"
    machine.put("/proc/meminfo", "HugePages_Free:     2048\nHugepagesize:       2048 kB")
    assert only(memory.huge_pages, facts_of(machine)).said == "4 GiB are reserved as large pages: enough for the arena"


def test_an_arena_on_small_pages_is_a_warning(machine):
    state = running(arena={"huge_bytes": GIB, "pinned": True, "notes": []})
    found = only(memory.huge_pages, facts_of(machine, state))
    assert found.level == "warn" and found.said.startswith("1 GiB of the arena's 4 GiB lie on 2 MiB pages")


# --- room ----------------------------------------------------------------------------------------------------


def test_an_arena_that_fits_is_good(machine):
    assert only(memory.room, facts_of(machine)) == ok("cpu.capacity = 4 GiB fits the 64 GiB that are available")


def test_an_arena_that_does_not_fit_is_bad(machine):
    found = only(memory.room, facts_of(machine, cpu__capacity="64 GiB"))
    assert (found.level, found.said) == ("bad", "cpu.capacity = 64 GiB, and 64 GiB of memory are available")


def test_an_arena_that_is_taken_needs_no_more_room(machine):
    machine.put("/proc/meminfo", "MemAvailable:   1024 kB")
    assert only(memory.room, facts_of(machine, running())).level == "ok"


# --- cgroups -------------------------------------------------------------------------------------------------


def test_without_a_limit_there_is_none(machine):
    machine.put("/proc/self/cgroup", "0::/system.slice/kvtierd.service")
    machine.put("/sys/fs/cgroup/system.slice/kvtierd.service/memory.max", "max")
    assert only(memory.cgroup, facts_of(machine)) == ok("no cgroup limits the memory of kvtierd")


def test_a_limit_below_the_arena_is_bad(machine):
    machine.put("/proc/self/cgroup", "0::/system.slice/kvtierd.service")
    machine.put("/sys/fs/cgroup/system.slice/kvtierd.service/memory.max", str(4 * GIB))
    found = only(memory.cgroup, facts_of(machine))
    assert found.level == "bad"
    assert found.said.startswith(
        "/sys/fs/cgroup/system.slice/kvtierd.service/memory.max = 4 GiB, and kvtierd needs 4.25 GiB"
    )


def test_the_least_limit_of_all_groups_above_counts(machine):
    machine.put("/proc/self/cgroup", "0::/a/b")
    machine.put("/sys/fs/cgroup/a/b/memory.max", str(64 * GIB))
    machine.put("/sys/fs/cgroup/a/memory.max", str(GIB))
    found = only(memory.cgroup, facts_of(machine))
    assert found.level == "bad" and found.said.startswith("/sys/fs/cgroup/a/memory.max = 1 GiB")


def test_a_limit_where_it_is_slowed_down_is_a_warning(machine):
    machine.put("/proc/self/cgroup", "0::/a")
    machine.put("/sys/fs/cgroup/a/memory.high", str(GIB))
    assert only(memory.cgroup, facts_of(machine)).level == "warn"


def test_version_1_is_understood(machine):
    machine.put("/proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/x\n0::/")
    machine.put("/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", str(2 * GIB))
    machine.put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    found = only(memory.cgroup, facts_of(machine))
    assert found.level == "bad" and found.said.startswith("/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes = 2 GiB")


def test_a_container_sees_its_limit_at_the_root(machine):
    machine.put("/proc/self/cgroup", "0::/")
    machine.put("/sys/fs/cgroup/memory.max", str(8 * GIB))
    found = only(memory.cgroup, facts_of(machine))
    assert found == ok("/sys/fs/cgroup/memory.max = 8 GiB, and kvtierd needs 4.25 GiB for this cpu.capacity")


def test_of_a_running_daemon_its_own_group_counts(machine):
    machine.put(f"/proc/{PID}/cgroup", "0::/mine")
    machine.put("/sys/fs/cgroup/mine/memory.max", str(GIB))
    assert only(memory.cgroup, facts_of(machine, running())).level == "bad"


# --- swap, core files ----------------------------------------------------------------------------------------

SWAPS = "Filename\tType\tSize\tUsed\tPriority\n{}\tpartition\t1000\t0\t-2"


def test_no_swap_is_good(machine):
    assert only(memory.swap, facts_of(machine)) == ok("none")


def test_swap_beside_a_pinned_arena_is_good(machine):
    machine.put("/proc/swaps", SWAPS.format("/dev/sda2"))
    assert only(memory.swap, facts_of(machine, running())) == ok("/dev/sda2: the arena is pinned and stays out")


def test_swap_beside_an_arena_that_is_not_pinned_is_a_warning(machine):
    machine.put("/proc/swaps", SWAPS.format("/dev/sda2"))
    state = running(arena={"huge_bytes": 0, "pinned": False, "notes": []})
    found = only(memory.swap, facts_of(machine, state))
    assert found.level == "warn" and "swapoff" in found.cure


def test_swap_that_is_in_memory_leaves_no_trace(machine):
    machine.put("/proc/swaps", SWAPS.format("/dev/zram0"))
    assert only(memory.swap, facts_of(machine, cpu__pin=False)) == ok("only in memory (zram)")


def test_a_daemon_that_may_leave_core_files_is_a_warning(machine):
    machine.limits(PID, core="unlimited")
    assert only(memory.core_dumps, facts_of(machine, running())).level == "warn"


def test_a_daemon_that_leaves_none_is_good(machine):
    machine.limits(PID, core="0")
    assert only(memory.core_dumps, facts_of(machine, running())) == ok(f"process {PID} leaves none")


def test_core_files_by_the_settings_are_a_warning(machine):
    assert only(memory.core_dumps, facts_of(machine, security__dumpable=True)).level == "warn"


@pytest.mark.parametrize(("release", "version"), [("6.1.0", (6, 1)), ("5.15.0-91-generic", (5, 15)), ("odd", (0, 0))])
def test_the_version_of_a_kernel(release, version):
    assert memory.kernel_version(release) == version
