"""Any message of the protocol, as a hypothesis strategy: one for each kind, built from what the kind declares."""

from dataclasses import fields

from hypothesis import strategies as st

from kvtier import protocol
from kvtier.block import KEY_BYTES, SECRET_BYTES

KINDS = list(protocol.Message.__args__)

counts = st.one_of(st.integers(0, 300), st.sampled_from([2**31, 2**32, 2**62, 2**63 - 1]))
texts = st.text(max_size=20) | st.sampled_from(["scheduler", "worker", "observer", "engine"])


def whole(size: int) -> st.SearchStrategy[bytes]:
    """Bytes of up to 6 entries of this size; small numbers among them, because those name slots that there are."""
    entry = st.binary(min_size=size, max_size=size) | st.integers(0, 300).map(lambda n: n.to_bytes(size, "little"))
    return st.lists(entry, max_size=6).map(b"".join)


_BY_NAME = {
    "keys": whole(KEY_BYTES),
    "slots": whole(4),
    "secret": whole(SECRET_BYTES),
    "parents": whole(KEY_BYTES),
    "witness": st.just(b"") | st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES),
    "tenant": st.just(b"") | st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES),
    "witness_secret": st.just(b"") | st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES),
    "namespace": st.binary(min_size=32, max_size=32) | st.binary(max_size=40),
    "gpu": st.just(b"") | st.binary(min_size=64, max_size=64),
    "gpu_uuid": st.just(b"") | st.binary(min_size=16, max_size=16),
    "gpu_stamp": st.just(b"") | st.binary(min_size=8, max_size=8),
    "codec": st.sampled_from(["", "int8:bf16:64", "int4:fp16:128"]),
    "copies": st.sampled_from(protocol.COPIES),
    "version": st.just(protocol.VERSION),
    "counts": st.dictionaries(texts, counts, max_size=4),
    "state": st.dictionaries(texts, counts | texts | st.booleans() | st.none(), max_size=4),
}
_BY_TYPE = {int: counts, str: texts}


def a(kind: type) -> st.SearchStrategy[protocol.Message]:
    """Any message of this kind that an honest peer could send."""
    return st.builds(kind, *[_BY_NAME[f.name] if f.name in _BY_NAME else _BY_TYPE[f.type] for f in fields(kind)])


messages = st.one_of([a(kind) for kind in KINDS])
