"""The native codecs by their names: one of each, and why there is none."""

import pytest

from kvtier import _native
from kvtier.codec import RAW, Codec
from kvtier.tiers import encoders
from kvtier.tiers.encoders import encoder_of, why_not


@pytest.fixture
def anew():
    """Nothing was made yet; nor is what is made here kept."""
    encoders._made.cache_clear()
    yield
    encoders._made.cache_clear()


def test_each_is_made_once_and_blocks_as_they_are_need_none():
    assert encoder_of(Codec("exp12")) is encoder_of(Codec("exp12")) is not None
    assert encoder_of(Codec("int8", "bf16", 64)) is not encoder_of(Codec("int8", "bf16", 32))
    assert encoder_of(RAW) is None and why_not(RAW) == why_not(Codec("exp12")) == ""


def test_what_this_machine_lacks_is_said(anew, monkeypatch):
    def lacks(*codec: object) -> None:
        raise RuntimeError("libzstd.so.1: no such file")

    monkeypatch.setattr(_native, "Codec", lacks)
    assert encoder_of(Codec("expz")) is None and why_not(Codec("expz")) == "libzstd.so.1: no such file"


def test_a_codec_that_never_was_is_an_error_of_whoever_asks(anew):
    with pytest.raises(ValueError, match="exp13"):
        encoder_of(Codec("exp13"))
