"""The admin API of a kvtierd, for tests."""

import os
import socket
from pathlib import Path
from typing import Any

from kvtierd import PATIENCE_S, KVTierd, eventually

from kvtier.admin import default_admin_socket
from kvtier.admin.caller import AdminCaller


def caller_of(daemon: KVTierd) -> AdminCaller:
    """Once there is somebody to call: gRPC is loaded after engines are served."""
    path = default_admin_socket(daemon.socket)
    eventually(lambda: is_served(path))
    return AdminCaller(path, PATIENCE_S)


def is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(os.fspath(path)) == 0


def listed(admin: AdminCaller, session: str) -> dict[str, Any]:
    (row,) = [row for row in admin.sessions()[0] if row["session"] == session]
    return row
