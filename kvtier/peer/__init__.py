"""The peer API: gRPC over TCP, by which nodes read blocks from each other. What both sides have to know.

peer.proto says what it is; the *_pb2* files are made from that by `make stubs`, never by hand. chunks.py is how bytes
travel, rights.py who may have them. Its server is peer_service.py, its client tiers/remote/peer.py.
"""

CHUNK_BYTES = 256 * 1024  # of a body, at most
MESSAGE_BYTES_MAX = 2 * CHUNK_BYTES
KEYS_MAX = 1024  # of one call
CALLS_MAX = 64  # at once, of all clients
STREAMS_MAX = 48  # of them, those of one connection
CONNECTIONS_MAX = 256  # in all; one more is closed at once, and so is in a few seconds whoever says nothing
NAMESPACE_BYTES = 8  # of its digest

OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    # Large pieces come in large pieces: each read of the socket costs as much as copying 100 KiB.
    ("grpc.experimental.tcp_min_read_chunk_size", CHUNK_BYTES),
    ("grpc.experimental.tcp_read_chunk_size", 4 * CHUNK_BYTES),
    ("grpc.experimental.tcp_max_read_chunk_size", 16 * CHUNK_BYTES),
    ("grpc.http2.write_buffer_size", 2 * CHUNK_BYTES),  # a piece is made while the one before it goes
)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine gets there. `host`: as it stands in a URL, without brackets."""
    return host in ("localhost", "::1") or (host.startswith("127.") and host.replace(".", "").isdigit())
