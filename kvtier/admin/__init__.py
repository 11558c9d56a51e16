"""The admin API: gRPC on a unix socket of its own, for gateways, agent frameworks and the `kvtier` command.

admin.proto says what it is; the *_pb2* files are made from that by `make stubs`, never by hand. service.py is its
server, on the daemon's event loop, exporting.py and importing.py what it does with parcels; caller.py its client, for
commands.
"""

from pathlib import Path

MESSAGE_BYTES_MAX = 1024**2
CALLS_MAX = 64  # at once
PIECE_BYTES = 256 * 1024  # of a file, in one message at most
KEYS_AT_ONCE = 4096  # that are looked at in one turn of the loop


def default_admin_socket(socket: Path) -> Path:
    """Where it is unless admin.socket says otherwise; `socket`: kvtierd's own."""
    return socket.with_name("admin.sock")


def target_of(path: Path) -> str:
    """As gRPC names a unix socket. It takes "%41" for an A."""
    return f"unix:{str(path.absolute()).replace('%', '%25')}"
