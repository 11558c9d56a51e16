"""Engines: the vLLM processes of this machine as their arguments and environments show them, and those that connected."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvtier.doctor.facts import Facts, command_of
from kvtier.doctor.findings import Finding, bad, ok, warn
from kvtier.doctor.system import System

CONNECTOR = "KVTierConnector"
ALGORITHM, ALGORITHM_USUAL = "--prefix-caching-hash-algo", "sha256"
GOOD_HASHES, PORTABLE_HASH = ("sha256_cbor", "sha256"), "sha256_cbor"
SEED = "PYTHONHASHSEED"
NONE = "no vLLM runs here, as far as this user can see"


@dataclass(frozen=True)
class Engine:
    """One `vllm serve`."""

    pid: int
    command: tuple[str, ...]
    seed: str | None  # None: its environment is not for us to read
    uid: int

    @property
    def algorithm(self) -> str:
        return self.option(ALGORITHM) or ALGORITHM_USUAL

    @property
    def uses_kvtier(self) -> bool:
        return any(CONNECTOR in word for word in self.command)

    def option(self, wanted: str) -> str:
        """Its value, the last that is given; vLLM takes - and _ for the same. Empty: not given."""
        found = ""
        for at, word in enumerate(self.command):
            name, equals, value = word.partition("=")
            if name.startswith("--") and name.replace("_", "-") == wanted:
                found = value if equals else next(iter(self.command[at + 1 :]), "")
        return found


def engines_of(system: System) -> list[Engine]:
    found = []
    for name in system.names("/proc"):
        if not name.isdecimal() or not is_vllm(command := command_of(system, name)):
            continue
        owner = system.stat(f"/proc/{name}")
        found.append(Engine(int(name), tuple(command), seed_of(system, name), -1 if owner is None else owner.st_uid))
    return found


def is_vllm(command: list[str]) -> bool:
    """An engine's own processes, such as VLLM::EngineCore, have no arguments of their own."""
    names = [Path(word).name for word in command[:3]]
    is_module = any(word.startswith("vllm.entrypoints.") for word in command[:4])
    return is_module or ("vllm" in names and "serve" in command[:4])


def seed_of(system: System, pid: str) -> str | None:
    environment = system.read(f"/proc/{pid}/environ")
    if not environment:
        return None
    given = [one.partition("=")[2] for one in environment.split("\0") if one.startswith(f"{SEED}=")]
    return given[0] if given else ""


def hashes(facts: Facts) -> Iterator[Finding]:
    """Blocks are named by the engine's own prefix hashes."""
    engines = engines_of(facts.system)
    if not engines:
        yield ok(NONE)
    for engine in engines:
        said = f"vLLM, process {engine.pid}: {engine.algorithm}"
        if engine.algorithm not in GOOD_HASHES:
            cure = f"start it with {ALGORITHM} {PORTABLE_HASH}"
            yield (bad if engine.uses_kvtier else warn)(f"{said} can be forged, and kvtier refuses it", cure)
        elif engine.algorithm != PORTABLE_HASH and facts.settings.text("remote.url"):
            cure = f"start the engines of all nodes with {ALGORITHM} {PORTABLE_HASH}"
            yield warn(f"{said} differs between versions of Python: other nodes may not find these blocks", cure)
        else:
            yield ok(said)


def seeds(facts: Facts) -> Iterator[Finding]:
    """Engines with different seeds have different hashes for the same tokens."""
    engines = engines_of(facts.system)
    known = {engine.pid: engine.seed for engine in engines if engine.seed is not None}
    shown = ", ".join(f"process {pid}: {seed or 'not set'}" for pid, seed in known.items())
    if not engines:
        yield ok(NONE)
    elif not known:
        yield ok(f"{len(engines)} vLLM: the environment is not for this user to see; run as root, or as its user")
    elif len(set(known.values())) > 1:
        cure = f"set {SEED} alike for all, or for none"
        yield warn(f"{SEED} differs ({shown}): these engines share no blocks", cure)
    elif "random" in known.values():
        yield bad(f"{SEED}=random: after a restart no block is found again", f"unset {SEED}, or set a number")
    else:
        yield ok(f"{SEED}: {shown}")


def connected(facts: Facts) -> Iterator[Finding]:
    """Whether those that are to use kvtierd do."""
    wanting = [engine for engine in engines_of(facts.system) if engine.uses_kvtier]
    if facts.state is None:
        if wanting:
            pids = ", ".join(str(engine.pid) for engine in wanting)
            yield warn(
                f"vLLM (process {pids}) is to use kvtier, and none answers", "start kvtierd: engines find it by themselves"
            )
        else:
            yield ok("no kvtierd runs, and no vLLM that is to use it")
        return
    there = facts.state["engines"]
    if there or not wanting:
        yield ok(f"{len(there)} connected: {', '.join(one['engine'] for one in there)}" if there else "none is connected")
        return
    owners = ", ".join(f"process {engine.pid} of user {engine.uid}" for engine in wanting)
    cure = (
        f"see its log for the socket that it tries (KVTIER_SOCKET; here: {facts.socket}); its user must be kvtierd's, "
        "root, or in server.group"
    )
    yield warn(f"vLLM ({owners}) is to use kvtier, and none is connected", cure)
