"""A Mooncake Store for the tests of remotes: a master, and a process that lends it memory. As the others in servers.py."""

import contextlib
import ctypes
import importlib.util
import urllib.request
from pathlib import Path

from remote.servers import LOOPBACK, Absent, Server, free_ports


def mooncake_program(name: str) -> Path:
    found = importlib.util.find_spec("mooncake")
    if found is None or not found.submodule_search_locations:
        raise Absent("no mooncake (pip install mooncake-transfer-engine-non-cuda)")
    for library in ("libibverbs.so.1", "libnuma.so.1", "libcurl.so.4"):
        try:
            ctypes.CDLL(library)
        except OSError as error:
            raise Absent(f"{error} (Debian: apt-get install libibverbs1 libnuma1 libcurl4)") from None
    program = Path(found.submodule_search_locations[0]) / name
    program.chmod(program.stat().st_mode | 0o111)
    return program


class MooncakeMaster(Server):
    name = "Mooncake's master"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.program = mooncake_program("mooncake_master")
        self.port, self.metrics_port = free_ports(2)

    def command(self) -> list[str]:
        return [str(self.program), f"-rpc_port={self.port}", f"-rpc_address={LOOPBACK}", "-rpc_thread_num=4",
                f"-metrics_port={self.metrics_port}", f"-metrics_host={LOOPBACK}"]  # fmt: skip

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            self.segments()
            return True
        return False

    def segments(self) -> list[str]:
        """Whose memory it has."""
        with urllib.request.urlopen(f"http://{LOOPBACK}:{self.metrics_port}/get_all_segments", timeout=2) as answer:
            return answer.read().decode().split()


class MooncakeOwner(Server):
    """Lends memory. What carries values listens on all addresses: it has no setting for that."""

    name = "an owner of Mooncake's values"

    def __init__(self, folder: Path, master: MooncakeMaster, size: str) -> None:
        super().__init__(folder)
        self.program, self._master, self._size = mooncake_program("mooncake_client"), master, size
        (self.port,) = free_ports(1)

    def command(self) -> list[str]:
        return [str(self.program), f"-host={LOOPBACK}", f"-port={self.port}", "-metadata_server=P2PHANDSHAKE",
                "-protocol=tcp", f"-master_server_address={LOOPBACK}:{self._master.port}",
                f"-global_segment_size={self._size}"]  # fmt: skip

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self._master.segments())
        return False


class Mooncake:
    def __init__(self, folder: Path, size: str = "512MB") -> None:
        self.master = MooncakeMaster(folder / "master")
        self.owner = MooncakeOwner(folder / "owner", self.master, size)

    def __enter__(self) -> "Mooncake":
        try:
            self.start()
        except (AssertionError, RuntimeError):
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"mooncake://{LOOPBACK}:{self.master.port}"

    def start(self) -> None:
        self.master.start()
        self.owner.start()

    def kill(self) -> None:
        self.owner.kill()
        self.master.kill()

    def freeze(self) -> None:
        self.master.freeze()
        self.owner.freeze()

    def thaw(self) -> None:
        self.owner.thaw()
        self.master.thaw()
