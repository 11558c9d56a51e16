"""The admin API: gRPC on a unix socket of its own, for gateways, agent frameworks and the `kvtier` command.

admin.proto says what it is; the *_pb2* files are made from that by `make stubs`, never by hand. service.py is its
server, on the daemon's event loop; caller.py its client, for commands.
"""

from pathlib import Path

MESSAGE_BYTES_MAX = 1024**2
CALLS_MAX = 64  # at once


def default_admin_socket(socket: Path) -> Path:
    """Where it is unless admin.socket says otherwise; `socket`: kvtierd's own."""
    return socket.with_name("admin.sock")


def target_of(path: Path) -> str:
    """As gRPC names a unix socket. It takes "%41" for an A."""
    return f"unix:{str(path.absolute()).replace('%', '%25')}"
