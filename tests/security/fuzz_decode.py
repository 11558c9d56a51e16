"""Frames that a coverage-guided fuzzer thinks up, through the reader of the protocol: whatever it isn't, it is a
ProtocolError. Run by test_fuzz_decode.py: the arguments are libFuzzer's."""

import contextlib
import sys

import atheris

with atheris.instrument_imports(include=["kvtier.protocol", "kvtier.block", "kvtier.errors"]):
    from kvtier import protocol
    from kvtier.errors import ProtocolError


def read(stream: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        for message in protocol.FrameReader().feed(stream):
            protocol.encode(message)
    with contextlib.suppress(ProtocolError):
        protocol.decode(stream)


if __name__ == "__main__":
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
