"""Compiles the fake driver, and a program that is tested against it, once for each way they are asked for.

What was built of the same text by the same command is found again in the system's folder for temporary files.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "native"
FAKE = [HERE / name for name in ("control.cpp", "streams.cpp", "memory.cpp", "fake_cuda.cpp", "calls.cpp")]
STRESS = [HERE / "stress.cpp"]

PLAIN, ADDRESS, THREAD = "", "address,undefined", "thread"
OPTIMIZED = {PLAIN: "-O1", ADDRESS: "-O0", THREAD: "-O1"}  # -O0: gcc takes twice as long for -O1 with these checks


def compiler() -> str | None:
    """None where there is none."""
    return shutil.which(os.environ.get("CXX", "c++"))


def has_sanitizer(sanitize: str) -> bool:
    """Whether the compiler has it, and its runtime works here."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "nothing")
        command = [str(compiler()), "-x", "c++", "-", f"-fsanitize={sanitize}", "-o", str(program)]
        built = subprocess.run(command, input="int main() {}\n", text=True, capture_output=True, check=False)
        return built.returncode == 0 and subprocess.run([program], capture_output=True, check=False).returncode == 0


def library(*, hide: Iterable[str] = (), sanitize: str = PLAIN) -> Path:
    """The fake driver. `hide`: entry points that it shall not have. CalledProcessError: it doesn't compile.

    The plain one serves a program that is built with sanitizers, too: their locks and memmove are the program's.
    """
    # initial-exec: gcc's leak checker crashes on what threads have for themselves in a library that was loaded late.
    local = " ".join(f"{symbol};" for symbol in sorted(hide))
    script = f"{{ global: *; local: {local} }};\n" if local else ""
    objects = [_object(FAKE, _command(sanitize, "-fPIC", "-ftls-model=initial-exec"))]
    return _linked("libfake_cuda.so", objects, _command(sanitize, "-shared"), script)


def stress(*, sanitize: str = PLAIN) -> Path:
    """The program of stress.cpp, with kvtier's own CUDA files in it."""
    command = _command(sanitize, f"-I{NATIVE}")
    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(lambda unit: _object(unit, command), [STRESS, sorted(NATIVE.glob("cuda_*.cpp"))]))
    return _linked("stress", objects, command)


def _command(sanitize: str, *flags: str) -> list[str]:
    command = [str(compiler()), "-std=c++20", OPTIMIZED[sanitize], "-Wall", "-Wextra", "-fvisibility=hidden", "-pthread"]
    return [*command, *flags, *(["-g1", f"-fsanitize={sanitize}", "-fno-omit-frame-pointer"] if sanitize else [])]


def _object(sources: list[Path], command: list[str]) -> Path:
    """The files are compiled as one, which takes a third of the time."""
    headers = [*sorted(HERE.glob("*.h")), *(sorted(NATIVE.glob("*.h")) if sources != FAKE else [])]

    def compile_into(folder: Path) -> None:
        unit = folder / "unit.cpp"
        unit.write_text("".join(f'#include "{source}"\n' for source in sources))
        _run([*command, "-c", unit, "-o", folder / "fresh"])

    return _kept("unit.o", [*command, *(file.read_text() for file in [*sources, *headers])], compile_into)


def _linked(name: str, objects: list[Path], command: list[str], script: str = "") -> Path:
    def link_into(folder: Path) -> None:
        (folder / "script").write_text(script)
        versions = [f"-Wl,--version-script={folder / 'script'}"] if script else []
        _run([*command, *objects, *versions, "-o", folder / "fresh", "-ldl"])

    return _kept(name, [*command, *map(str, objects), script], link_into)


def _kept(name: str, made_of: list[str], make_into: Callable[[Path], None]) -> Path:
    """What `make_into` leaves as "fresh", unless it was made before."""
    digest = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:20]
    folder = Path(tempfile.gettempdir(), f"kvtier-fake-cuda-{os.getuid()}", digest)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # others may want it at the same time
        if not (folder / name).exists():
            make_into(folder)
            (folder / "fresh").rename(folder / name)
    return folder / name


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, stderr=done.stderr)
