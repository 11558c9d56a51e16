"""The gather and scatter kernel: its code on the CPU, byte for byte, and whether what is shipped is what it compiles to."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"
COMMITTED = NATIVE / "copy_kernel.ptx.h"
CXX = os.environ.get("CXX") or shutil.which("c++") or "c++"
PLAIN = ["-fsanitize=undefined", "-fno-sanitize-recover=all"]  # a vector at a wrong address is undefined behaviour
THREADS_WATCHED = ["-fsanitize=thread"]


@pytest.fixture(scope="module")
def kernel_on_cpu(tmp_path_factory):
    """What runs the kernel, compiled as C++ with the given flags: (seed, shape ...) -> what went wrong, or nothing."""
    built: dict[str, Path] = {}

    def compiled(flags: list[str]) -> Path:
        key = " ".join(flags)
        if key not in built:
            program = tmp_path_factory.mktemp("kernel") / "kernel_on_cpu"
            command = [CXX, "-std=c++20", "-O1", "-g", "-fno-strict-aliasing", "-Wno-unknown-pragmas", "-pthread", *flags]
            source = str(Path(__file__).with_name("kernel_on_cpu.cpp"))
            subprocess.run([*command, source, "-o", str(program)], check=True, timeout=200)
            built[key] = program
        return built[key]

    def run(*numbers: int, flags: list[str] = PLAIN) -> str:
        command = [str(compiled(flags)), *map(str, numbers)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        return "" if done.returncode == 0 else f"exit {done.returncode}: {done.stdout}{done.stderr}"

    return run


# (fragments, blocks, threads of a block, bytes of the largest): few fragments are shared by all blocks, many dealt out.
SHAPES = [
    (0, 2, 32, 1),
    (1, 1, 1, 70_000),
    (1, 4, 64, 70_000),
    (7, 3, 32, 70_000),
    (24, 3, 32, 70_000),
    (60, 4, 32, 70_000),
    (300, 3, 64, 5_000),
    (1_000, 2, 64, 40),
    (515, 1, 256, 300),
]


@pytest.mark.parametrize(("fragments", "blocks", "threads", "largest"), SHAPES)
def test_fragments_of_all_sizes_and_alignments_arrive_and_nothing_else_is_touched(
    kernel_on_cpu, fragments, blocks, threads, largest
):
    for seed in range(3):
        assert kernel_on_cpu(seed, fragments, blocks, threads, largest) == "", seed


def test_the_threads_of_a_block_never_race_for_what_they_share(kernel_on_cpu):
    """ThreadSanitizer sees a barrier that is missing even where the bytes come out right."""
    for fragments, largest in [(3, 70_000), (200, 700)]:
        assert kernel_on_cpu(1, fragments, 2, 32, largest, flags=THREADS_WATCHED) == ""


# --- what is shipped -----------------------------------------------------------------------------------------


def test_the_kernel_that_is_shipped_was_compiled_from_the_source_that_is_there():
    """When not: make kernel."""
    assert hashlib.sha256((NATIVE / "copy_kernel.cu").read_bytes()).hexdigest() in COMMITTED.read_text()


def test_the_kernel_that_is_shipped_is_for_old_drivers_and_old_cards():
    ptx = COMMITTED.read_text()
    assert re.findall(r"^\.version (.*)$", ptx, re.MULTILINE) == ["8.0"]
    assert re.findall(r"^\.target (.*)$", ptx, re.MULTILINE) == ["sm_70"]
    assert len(re.findall(r"^\.visible \.entry kvtier_copy\(", ptx, re.MULTILINE)) == 1


def test_the_kernel_that_is_shipped_is_what_its_compiler_makes_of_it(tmp_path):
    """When not: make kernel. Skipped where the compiler's package can't be had."""
    [package] = re.findall(r"^NVRTC := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    fetch = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--target"]
    fetched = subprocess.run([*fetch, str(tmp_path / "nvrtc"), package], capture_output=True, text=True, timeout=250)
    if fetched.returncode:
        pytest.skip(f"{package} can't be had: {fetched.stderr.strip().splitlines()[-1:]}")
    made = tmp_path / "copy_kernel.ptx.h"
    where = os.environ | {"PYTHONPATH": str(tmp_path / "nvrtc")}
    subprocess.run([sys.executable, str(NATIVE / "make_kernel.py"), str(made)], env=where, check=True, timeout=60)
    assert made.read_text() == COMMITTED.read_text()
