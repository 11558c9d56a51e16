"""AdminCaller: the admin API for commands. Every error is a DaemonError that names the cure."""

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc

from kvtier.admin import MESSAGE_BYTES_MAX, admin_pb2, target_of
from kvtier.admin.admin_pb2_grpc import AdminStub
from kvtier.errors import DaemonError

OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 100),  # `kvtier top` waits for a daemon that is started again
    ("grpc.max_reconnect_backoff_ms", 1000),
)
ANSWER_S = 5.0
FORGET_S = 600.0  # drives have to be overwritten
SAYS_ALL = (  # of an error that is no trouble of gRPC's: what the daemon said is all that there is to say
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.DATA_LOSS,
)

T = TypeVar("T")


class AdminCaller:
    def __init__(self, path: Path, timeout_s: float = ANSWER_S) -> None:
        self._path, self._timeout_s = path, timeout_s
        self._channel = grpc.insecure_channel(target_of(path), OPTIONS)
        self._stub = AdminStub(self._channel)

    def __enter__(self) -> "AdminCaller":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def sessions(self, sort: str = "", limit: int = 0, session: str = "", tenant: str = "") -> tuple[list[dict], int]:
        """Rows as retention.sessions has them, and how many sessions there are in all."""
        request = admin_pb2.ListSessionsRequest(sort=sort, limit=limit, session=session, tenant=tenant)
        answer = self._call(self._stub.ListSessions, request)
        return [_as_dict(row) for row in answer.sessions], answer.known

    def warm(self, session: str, tenant: str = "") -> dict[str, Any]:
        return _as_dict(self._call(self._stub.Warm, admin_pb2.WarmRequest(session=session, tenant=tenant)))

    def park(self, session: str, tenant: str = "") -> dict[str, Any]:
        return _as_dict(self._call(self._stub.Park, admin_pb2.ParkRequest(session=session, tenant=tenant)))

    def pin(self, session: str, tenant: str = "", seconds: float | None = None) -> dict[str, Any]:
        """`seconds`: 0 unpins; None: what policy.pin_s says."""
        request = admin_pb2.PinRequest(session=session, tenant=tenant, seconds=seconds)
        return _as_dict(self._call(self._stub.Pin, request))

    def end(self, session: str, tenant: str = "") -> dict[str, Any]:
        return _as_dict(self._call(self._stub.End, admin_pb2.EndRequest(session=session, tenant=tenant)))

    def forget(self, session: str, tenant: str = "", timeout_s: float = FORGET_S) -> dict[str, Any]:
        """The proof."""
        request = admin_pb2.ForgetRequest(session=session, tenant=tenant)
        return _as_dict(self._call(self._stub.Forget, request, timeout_s))

    def export(self, session: str, tenant: str, timeout_s: float) -> Iterator[dict[str, Any]]:
        """Pieces of a file, as they come; `parcel` with the first and the last."""
        return self._stream(self._stub.Export, admin_pb2.ExportRequest(session=session, tenant=tenant), timeout_s)

    def import_(self, pieces: Iterable[bytes], timeout_s: float) -> dict[str, Any]:
        """Of such a file. What came of it."""
        requests = (admin_pb2.ImportRequest(piece=piece) for piece in pieces)
        return _as_dict(self._call(self._stub.Import, requests, timeout_s))

    def drain(self, timeout_s: float) -> Iterator[dict[str, Any]]:
        """How far it is, a few times a second."""
        return self._stream(self._stub.Drain, admin_pb2.DrainRequest(), timeout_s)

    def _call(self, method: Any, request: Any, timeout_s: float = 0.0) -> Any:
        timeout_s = timeout_s or self._timeout_s
        _look(self._path)
        return self._heard(lambda: method(request, timeout=timeout_s, wait_for_ready=True), timeout_s)  # somebody listens

    def _stream(self, method: Any, request: Any, timeout_s: float) -> Iterator[dict[str, Any]]:
        """Whoever hears no more of it ends the call."""
        _look(self._path)
        answers = method(request, timeout=timeout_s, wait_for_ready=True)
        try:
            while (answer := self._heard(lambda: next(answers, None), timeout_s)) is not None:
                yield _as_dict(answer)
        finally:
            answers.cancel()

    def _heard(self, hear: Callable[[], T], timeout_s: float) -> T:
        try:
            return hear()
        except grpc.RpcError as error:
            raise DaemonError(self._said(error, timeout_s)) from None

    def _said(self, error: Any, timeout_s: float) -> str:
        """grpc.RpcError has its methods only in fact, not in its type."""
        code, details = error.code(), error.details()
        if code in SAYS_ALL:
            return str(details)
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"kvtierd on {self._path} doesn't answer within {timeout_s:g} s; what it was told goes on"
        if code == grpc.StatusCode.UNIMPLEMENTED:
            return f"kvtierd on {self._path} doesn't know this; install the same kvtier for both"
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            return f"kvtierd on {self._path} has too many calls at once ({details}); try again"
        return f"kvtierd on {self._path} went away, or is no kvtierd: {details}; look into its log, and try again"


def _look(path: Path) -> None:
    """gRPC doesn't say plainly why it can't connect; the kernel does."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(ANSWER_S)
            probe.connect(os.fspath(path))
    except OSError as error:
        cure = "start kvtierd, or name its socket with --socket or KVTIER_SOCKET, or its admin.socket with --admin"
        raise DaemonError(f"no kvtierd on {path}: {os.strerror(error.errno or 0)}; {cure}") from None


def _as_dict(message: Any) -> dict[str, Any]:
    """All fields; None for one that may be absent and is."""
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.has_presence and not message.HasField(field.name):
            value = None
        found[field.name] = _plain(field, value)
    return found


def _plain(field: Any, value: Any) -> Any:
    """Maps and messages as dicts, what is repeated as a list."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if field.message_type is None:
        return list(value)
    return dict(sorted(value.items())) if field.message_type.GetOptions().map_entry else _as_dict(value)
