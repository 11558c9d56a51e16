"""Visits to a kvtierd's metrics that are no HTTP, or only begin as such, made from a seed."""

import contextlib
import os
import random
import socket
from pathlib import Path

from kvtierd import PATIENCE_S

GOOD = (
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n",
    b"GET /healthz HTTP/1.0\r\n\r\n",
    b"HEAD /metrics HTTP/1.1\r\n\r\n",
    b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\nx",
    b"GET /../../etc/passwd HTTP/1.1\r\n\r\n",
    b"GET " + b"/" * 9000 + b" HTTP/1.1\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 3000 + b"\r\n",
    b"GET /metrics HTTP/9.9\n\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00",
)
ANSWER_BYTES = 1024 * 1024


def damaged(chance: random.Random, request: bytes) -> bytes:
    body = bytearray(request)
    for _ in range(chance.choice((1, 1, 3, 9))):
        match chance.randrange(3):
            case 0:
                body[chance.randrange(len(body))] = chance.randrange(256)
            case 1:
                at = chance.randrange(len(body))
                body[at:at] = chance.randbytes(chance.randrange(1, 20))
            case 2:
                del body[chance.randrange(1, len(body) + 1) :]
    return bytes(body)


def visit(path: Path, chance: random.Random) -> bytes:
    """What was answered; empty where one goes away before."""
    request = chance.choice(GOOD)
    if chance.random() < 0.7:
        request = damaged(chance, request)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(os.fspath(path))
        answer = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(request)
            if chance.random() < 0.2:
                return b""
            sock.shutdown(socket.SHUT_WR)
            while len(answer) < ANSWER_BYTES and (heard := sock.recv(65_536)):
                answer += heard
        return answer


def batch(path: Path, number: int, visits: int) -> dict[bytes, int]:
    """So many, all that follows from the seed `number`: how often each first line was answered. AssertionError: that is no
    answer of HTTP."""
    chance, lines = random.Random(number), {}
    for _ in range(visits):
        answer = visit(path, chance)
        assert not answer or answer.startswith(b"HTTP/1."), answer[:200]
        line = answer.split(b"\r\n", 1)[0]
        lines[line] = lines.get(line, 0) + 1
    return lines
