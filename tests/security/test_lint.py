"""What the source may not do: run what it was sent, start shells, compare secrets so that it takes longer the more of one
is right, speak to the network from places that nobody looks at."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = sorted(
    file for folder in ("kvtier", "connectors") for file in (ROOT / folder).rglob("*.py") if "_pb2" not in file.name
)


LOADERS = {"pickle", "marshal", "shelve", "cloudpickle", "dill", "joblib", "jsonpickle", "yaml", "ruamel"}
RUNNERS = {"eval", "exec", "compile", "__import__", "breakpoint"}
SHELLS = {("os", "system"), ("os", "popen"), ("subprocess", "getoutput"), ("subprocess", "getstatusoutput"),
          ("asyncio", "create_subprocess_shell"), ("torch", "load"), ("np", "load"), ("numpy", "load"),
          ("tempfile", "mktemp")}  # fmt: skip
TELEMETRY = {"http", "urllib", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "xmlrpc", "websocket", "websockets",
             "sentry_sdk", "opentelemetry", "posthog", "statsd", "telemetry", "analytics"}  # fmt: skip
PARSES = {"urllib.parse", "http.HTTPStatus"}  # of these packages, what opens nothing

# Who may open connections, and to what.
MAY_CONNECT = {
    "kvtier/client.py": "kvtierd's unix socket",
    "kvtier/worker_client.py": "kvtierd's unix socket",
    "kvtier/observer.py": "kvtierd's unix socket",
    "kvtier/listener.py": "a socket of its own that may be left over",
    "kvtier/service_manager.py": "$NOTIFY_SOCKET",
    "kvtier/admin/caller.py": "the admin socket",
    "kvtier/tiers/remote/": "remote.url",
    "kvtier/cli/": "kvtierd's sockets",
    "kvtier/doctor/": "kvtierd's sockets, and what settings name",
}
CONNECTS = {"connect", "connect_ex", "create_connection", "open_connection", "open_unix_connection", "sock_connect",
            "insecure_channel", "secure_channel", "sendto", "getaddrinfo", "gethostbyname"}  # fmt: skip

SECRETS = {"secret", "root", "password", "token", "passphrase", "master", "master_key", "data_key", "wrapped", "mac"}
# Comparisons that nobody outside can repeat and time, by file and function.
NO_GUESSES = {
    ("connectors/vllm/names.py", "keys"): "what the daemon said before and says now",
    ("connectors/vllm/manager.py", "_end_if_done"): "what the daemon said before and says now",
    ("kvtier/ram.py", "give"): "no secret, but slots with something to be wiped",
}


def shown(file: Path, node: ast.AST) -> str:
    return f"{file.relative_to(ROOT)}:{node.lineno}"  # type: ignore[attr-defined]


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), filename=str(file))


def imports_of(file: Path) -> Iterator[tuple[ast.AST, str]]:
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from ((node, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node, f"{node.module}.{name.name}") for name in node.names)


def calls_of(file: Path) -> Iterator[tuple[ast.Call, str, str]]:
    """Whose method it is, where that is a name, and what is called."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name):
                yield node, "", called.id
            elif isinstance(called, ast.Attribute):
                yield node, called.value.id if isinstance(called.value, ast.Name) else "?", called.attr


def unsafe(files: list[Path]) -> list[str]:
    wrong = [
        f"{shown(f, node)} imports {name}" for f in files for node, name in imports_of(f) if name.split(".")[0] in LOADERS
    ]
    for file in files:
        for node, whose, called in calls_of(file):
            is_shell = any(word.arg == "shell" and getattr(word.value, "value", True) for word in node.keywords)
            if (not whose and called in RUNNERS) or (whose, called) in SHELLS or is_shell:
                wrong.append(f"{shown(file, node)} calls {whose}.{called}")
    return wrong


def test_nothing_runs_what_it_was_sent_or_found():
    assert not unsafe(PACKAGE)


def test_only_few_files_open_connections_and_each_to_what_settings_name():
    wrong = []
    for file in PACKAGE:
        name = str(file.relative_to(ROOT))
        wrong += [
            f"{shown(file, node)} calls {called}"
            for node, _, called in calls_of(file)
            if called in CONNECTS and not any(name.startswith(place) for place in MAY_CONNECT)
        ]
    assert not wrong, "\n".join(["", *wrong])


def test_nothing_here_speaks_http_of_its_own_accord():
    wrong = [
        f"{shown(file, node)} imports {name}"
        for file in PACKAGE
        for node, name in imports_of(file)
        if name.split(".")[0] in TELEMETRY and not any(name.startswith(harmless) for harmless in PARSES)
    ]
    assert not wrong, "\n".join(["", *wrong])


def secrets_compared(file: Path) -> Iterator[tuple[str, ast.Compare, str]]:
    """Comparisons by ==, != or `in` of what is called a secret, and the function where they stand."""
    for function in ast.walk(tree_of(file)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq | ast.In | ast.NotIn):
                    for side in (node.left, *node.comparators):
                        name = getattr(side, "attr", getattr(side, "id", ""))
                        if name.lstrip("_") in SECRETS:
                            yield function.name, node, name


def test_secrets_are_compared_in_constant_time():
    """By hmac.compare_digest; what has another name, and what is no secret at all, no test can know."""
    wrong = [
        f"{shown(file, node)} {function} compares {name}"
        for file in PACKAGE
        for function, node, name in secrets_compared(file)
        if (str(file.relative_to(ROOT)), function) not in NO_GUESSES
    ]
    assert not wrong, "\n".join(["", *wrong])


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from yaml import load",
        "eval(text)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
        "weights = torch.load(path)",
    ],
)
def test_what_is_looked_for_would_be_found(line, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "file.py").write_text(line)
    assert len(unsafe([tmp_path / "file.py"])) == 1


def test_a_secret_that_is_compared_is_found(tmp_path):
    (tmp_path / "file.py").write_text("def f(a):\n    return a.secret == given or root in known or a.secret is None\n")
    assert [name for _, _, name in secrets_compared(tmp_path / "file.py")] == ["secret", "root"]
