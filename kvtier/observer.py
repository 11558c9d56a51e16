"""Questions to kvtierd from commands: one connection a question, an error that names the cure."""

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

from kvtier import protocol
from kvtier.errors import DaemonError, ProtocolError


def ask(path: Path, timeout_s: float = 2.0) -> dict[str, object]:
    """The daemon's snapshot, for commands. DaemonError says why there is none."""
    answer = _question(path, protocol.Ask(), timeout_s)
    assert isinstance(answer, protocol.Snapshot)
    return answer.state


def flush(path: Path, timeout_s: float) -> bool:
    """Whether all blocks that were worth a write when this was asked survive a crash now. DaemonError as for ask."""
    answer = _question(path, protocol.Flush(), timeout_s)
    assert isinstance(answer, protocol.Flushed)
    return bool(answer.is_durable)


def explain(path: Path, request: str, last: int = 1, timeout_s: float = 2.0) -> list[dict[str, Any]]:
    """Decision records, the newest last: of the request, or of the `last` newest requests if it is "last"."""
    answer = _question(path, protocol.Explain(request[: protocol.TEXT_MAX], last), timeout_s)
    assert isinstance(answer, protocol.Explained)
    return list(answer.state["decisions"])


def _question(path: Path, message: protocol.Message, timeout_s: float) -> protocol.Message:
    """An observer's question and its answer."""
    hello = protocol.Hello(protocol.VERSION, protocol.OBSERVER, "", b"", 0, 0, 0)
    reader = protocol.FrameReader()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            sock.connect(os.fspath(path))
            with contextlib.suppress(BrokenPipeError):  # it hung up at once; it says why
                sock.sendall(protocol.encode(hello) + protocol.encode(message))
            while data := sock.recv(protocol.RECEIVE_BYTES):
                for answer in reader.feed(data):
                    if isinstance(answer, protocol.Error):
                        raise DaemonError(f"kvtierd on {path} refuses: {answer.message}")
                    if not isinstance(answer, protocol.Welcome):
                        return answer
    except ProtocolError as error:
        raise DaemonError(f"kvtierd on {path} sent nonsense: {error}; install the same kvtier for both") from None
    except TimeoutError:
        raise DaemonError(f"kvtierd on {path} doesn't answer within {timeout_s:g} s") from None
    except OSError as error:
        cure = "start kvtierd, or name its socket with --socket or KVTIER_SOCKET"
        raise DaemonError(f"no kvtierd on {path}: {os.strerror(error.errno or 0)}; {cure}") from None
    raise DaemonError(f"kvtierd on {path} hung up")
