"""The style as a test: layers, purity, sizes, names. What `ruff` and `mypy` can see is not looked at here."""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from kvtier import config, stats
from kvtier.decision import REASONS

ROOT = Path(__file__).parents[1]
KVTIER = sorted(file for file in (ROOT / "kvtier").rglob("*.py") if "_pb2" not in file.name)  # but what protoc wrote
CONNECTORS = sorted((ROOT / "connectors").rglob("*.py"))
SOURCES = KVTIER + CONNECTORS
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# As the docstring of kvtier/__init__.py has it. `_native` and the package itself lie below all.
LAYERS = {
    **dict.fromkeys(("errors", "block", "usage", "tenants", "codec", "rows"), 0),
    **dict.fromkeys(("index", "arena", "policy", "stats", "protocol", "config", "transfer", "admission"), 1),
    **dict.fromkeys(("estimators", "guard", "ghosts", "hints", "returns", "known", "namespaces"), 1),
    **dict.fromkeys(("charging", "residue", "handover", "open_extents", "columns", "reclaim_order"), 1),
    **dict.fromkeys(("ram", "extents", "cost", "lineage", "ranking", "own_queues", "remote_room", "metrics"), 2),
    "coding": 2,
    **dict.fromkeys(("demotion", "staging", "mirror", "decision", "session", "s3fifo", "arc"), 3),
    **dict.fromkeys(("lower", "deciding", "categories", "expecting", "pins", "moving", "away", "lookup", "rankings"), 4),
    "hearing": 4,
    **dict.fromkeys(("seeking", "forgetting", "listing", "standing", "following", "draining"), 5),
    **dict.fromkeys(("leases", "lending", "retention"), 6),
    "store": 7,
    **dict.fromkeys(("client", "observer", "listener", "members", "topology", "failpoint", "decision_log"), 8),
    **dict.fromkeys(("beat", "logs", "secret_file", "peer", "service_manager", "access"), 8),
    **dict.fromkeys(("users", "hardening", "wiping", "handing_over"), 8),
    **dict.fromkeys(("dispatch", "adopting"), 9),
    **dict.fromkeys(("tiers", "replay", "calibration", "departing", "worker_client", "metrics_server", "settings"), 9),
    **dict.fromkeys(("mover", "server", "measuring", "experience", "opening", "visitor", "parcel"), 10),
    **dict.fromkeys(("admin", "peer_service", "doctor", "ending"), 11),
    "upgrade": 12,
    **dict.fromkeys(("daemon", "cli"), 13),
}
PURE_UP_TO = 7
WITHOUT_LAYER = {"__version__", "_version", "_native"}
IMPURE = {"asyncio", "threading", "socket", "time", "random", "secrets", "os", "select", "lmdb", "_native"}
CONNECTORS_MAY_IMPORT = {
    "client",
    "worker_client",
    "block",
    "codec",
    "estimators",
    "config",
    "errors",
    "hints",
    "protocol",
    "connectors",
    *WITHOUT_LAYER,
}
EDGE = ROOT / "connectors" / "vllm" / "edge.py"  # the one place that catches everything

FUNCTION_LINES_MAX, FILE_LINES_MAX = 60, 400
DOCSTRING_FROM = 24  # lines; a public function or class shorter than that may speak for itself
BANNED_WORDS = {"util", "utils", "helper", "helpers", "info", "infos", "data"}
BANNED_THREADS = {"threading", "Lock", "RLock", "Semaphore"}
MAY_THREAD = {
    "experience.py": {"threading"},  # a disk that hangs must not keep the process from its end
    "gpu.py": {"threading"},  # a device must not keep the loop waiting
    "remote.py": {"threading"},  # nor a network
}
FORBIDDEN_CALLS = {"eval", "exec"}
SERIALIZERS = {"pickle", "marshal", "shelve", "cloudpickle", "dill"}
LOCAL_FOLDERS = ["work", "farm", "root", "opt/wheels"]

Function = ast.FunctionDef | ast.AsyncFunctionDef
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), filename=str(file))


def shown(file: Path, node: ast.AST | None = None) -> str:
    return f"{file.relative_to(ROOT)}" + (f":{node.lineno}" if node is not None else "")  # type: ignore[attr-defined]


def imports_of(file: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Every imported module or name, in full: `from kvtier import stats` is kvtier.stats."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{shown(file, node)}: a relative import"
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def kvtier_imports_of(file: Path) -> Iterator[tuple[ast.stmt, str]]:
    """The parts of kvtier that a file imports: "store", "connectors", ..."""
    for node, name in imports_of(file):
        first, _, rest = name.partition(".")
        if first == "kvtier":
            yield node, rest.partition(".")[0]


def part_of(file: Path) -> str:
    return file.relative_to(ROOT / "kvtier").parts[0].removesuffix(".py")


def definitions_of(file: Path) -> Iterator[Function | ast.ClassDef]:
    return (node for node in ast.walk(tree_of(file)) if isinstance(node, DEFINITIONS))


def lines_of(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1  # type: ignore[attr-defined]


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# --- layers --------------------------------------------------------------------------------------------------


def test_every_file_of_kvtier_has_a_layer():
    assert {part_of(file) for file in KVTIER} == {*LAYERS, "__init__"}


def test_the_package_docstring_draws_the_same_layers():
    drawn = re.findall(r"(\d+)  ([a-z_][a-z0-9_]*(?: [a-z_][a-z0-9_]*)*)", (ROOT / "kvtier" / "__init__.py").read_text())
    assert {name: int(layer) for layer, names in drawn for name in names.split()} == LAYERS


def test_a_file_imports_only_from_lower_layers():
    wrong = [
        f"{shown(file, node)} imports {name}"
        for file in KVTIER
        for node, name in kvtier_imports_of(file)
        if part_of(file) != name  # cli's own files
        and (name not in LAYERS or LAYERS[name] >= LAYERS.get(part_of(file), 0))
        and name not in WITHOUT_LAYER
    ]
    assert not wrong, "\n".join(["", *wrong])


def test_what_decides_is_pure():
    wrong = [
        f"{shown(file, node)} imports {name}"
        for file in KVTIER
        if LAYERS.get(part_of(file), 99) <= PURE_UP_TO
        for node, name in imports_of(file)
        if IMPURE & {name.split(".")[0], name.removeprefix("kvtier.").split(".")[0]}
    ]
    assert not wrong, "\n".join(["", *wrong])


def test_connectors_see_only_what_is_made_for_them():
    wrong = [
        f"{shown(file, node)} imports {name}"
        for file in CONNECTORS
        for node, name in kvtier_imports_of(file)
        if name not in CONNECTORS_MAY_IMPORT
    ]
    assert not wrong, "\n".join(["", *wrong])


def test_the_daemon_and_its_client_know_nothing_of_an_engine():
    wrong = [
        f"{shown(file, node)} imports {name}"
        for file in KVTIER
        for node, name in imports_of(file)
        if name.split(".")[0] in ("vllm", "torch") or name.startswith("kvtier.connectors")
    ]
    assert not wrong, "\n".join(["", *wrong])


# --- what is not done ----------------------------------------------------------------------------------------


def test_everything_is_caught_at_the_edge_and_nowhere_else():
    wrong = []
    for file in SOURCES:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.ExceptHandler) and file != EDGE:
                caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"everything"}
                if caught & {"everything", "Exception", "BaseException"}:
                    wrong.append(shown(file, node))
    assert not wrong, "\n".join(["", *wrong])


def test_nothing_runs_what_it_was_sent():
    wrong = [
        f"{shown(f, node)} imports {n}" for f in SOURCES for node, n in imports_of(f) if n.split(".")[0] in SERIALIZERS
    ]
    for file in SOURCES:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
                wrong.append(f"{shown(file, node)} calls {node.func.id}")
    assert not wrong, "\n".join(["", *wrong])


def test_ownership_instead_of_locks():
    wrong = [
        shown(file, node)
        for file in KVTIER
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Name | ast.Attribute | ast.alias)
        and {getattr(node, word, "") for word in ("id", "attr", "name")} & BANNED_THREADS - MAY_THREAD.get(file.name, set())
    ]
    assert not wrong, "\n".join(["", *wrong])


def test_no_file_knows_the_machine_it_was_written_on():
    local = re.compile(r"(?<![\w./-])/(?:" + "|".join(LOCAL_FOLDERS) + r")(?![\w-])")
    wrong = []
    for file in tracked_files():
        lines = file.read_bytes().decode(errors="replace").splitlines()
        wrong += [f"{shown(file)}:{number}" for number, line in enumerate(lines, 1) if local.search(line)]
    assert not wrong, "\n".join(["", *wrong])


# --- sizes and names -----------------------------------------------------------------------------------------


def test_a_file_has_at_most_400_lines():
    long = {shown(file): n for file in SOURCES + TESTS if (n := len(file.read_text().splitlines())) > FILE_LINES_MAX}
    assert not long


def test_a_function_fits_a_screen():
    long = {
        f"{shown(file, node)} {node.name}": lines_of(node)
        for file in SOURCES + TESTS
        for node in definitions_of(file)
        if isinstance(node, Function) and lines_of(node) > FUNCTION_LINES_MAX
    }
    assert not long


def test_names_say_what_a_thing_is():
    names = [(shown(file), file.stem) for file in SOURCES]
    names += [(shown(file, node), node.name) for file in SOURCES for node in definitions_of(file)]
    wrong = [f"{where} {name}" for where, name in names if says_nothing(name)]
    assert not wrong, "\n".join(["", *wrong])


def says_nothing(name: str) -> bool:
    """HelperOfX, load_data and send_v2, but not WorkerMetadata."""
    words = re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)
    return bool(BANNED_WORDS & {word.lower() for word in words}) or bool(re.search(r"_v\d+$", name))


def test_every_file_and_all_that_is_public_and_not_short_says_what_it_is_for():
    """A file's docstring speaks for what it names, and for the file's largest class."""
    wrong = []
    for file in SOURCES:
        of_file = ast.get_docstring(tree_of(file))
        if not of_file:
            wrong.append(shown(file))
        classes = [node for node in definitions_of(file) if isinstance(node, ast.ClassDef)]
        largest = max(classes, key=lines_of, default=None)
        for node in definitions_of(file):
            public = not node.name.startswith("_") and lines_of(node) >= DOCSTRING_FROM
            spoken_for = ast.get_docstring(node) or node.name in (of_file or "")
            if public and not spoken_for and (largest is None or node.name != largest.name):
                wrong.append(f"{shown(file, node)} {node.name}")
    assert not wrong, "\n".join(["", *wrong])


# --- what is declared is used --------------------------------------------------------------------------------


def strings_of(files: list[Path]) -> set[str]:
    return {
        node.value
        for file in files
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_every_counter_is_counted_somewhere():
    used = strings_of([file for file in SOURCES if file.name != "stats.py" or file.parent.name == "cli"])
    used |= {f"missed_{reason}" for reason in REASONS} | {f"remote_{counter}" for counter in used}
    assert set(stats.COUNTERS) <= used


def test_every_option_is_read_somewhere():
    used = strings_of([file for file in SOURCES if file.name != "config.py"])
    assert {option.name for option in config.DAEMON + config.CONNECTOR} <= used
