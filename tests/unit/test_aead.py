"""AES-256-GCM: what the standard says comes out, and nothing that was changed is ever opened."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from kvtier import _native

KEY, NONCE, AAD = b"k" * 32, b"n" * 12, b"whose bytes these are"
KNOWN_KEY = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
KNOWN_NONCE = bytes.fromhex("cafebabefacedbaddecaf888")
KNOWN_TEXT = (
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
)
KNOWN_SEALED = (
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
    "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
)
# Test cases 13 to 16 of the specification of GCM: key, nonce, associated data, text, what is sealed, tag.
VECTORS = {
    "nothing": (bytes(32), bytes(12), "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
    "zeros": (
        bytes(32), bytes(12), "", "00" * 16, "cea7403d4d606b6e074ec5d3baf39d18", "d0d1c8a799996bf0265b98b5d48ab919",
    ),
    "text": (KNOWN_KEY, KNOWN_NONCE, "", KNOWN_TEXT, KNOWN_SEALED, "b094dac5d93471bdec1a502270e3cc6c"),
    "text with associated data": (
        KNOWN_KEY, KNOWN_NONCE, "feedfacedeadbeeffeedfacedeadbeefabaddad2", KNOWN_TEXT[:120], KNOWN_SEALED[:120],
        "76fc6ece0f4e1768cddf8853bb2d551b",
    ),
}  # fmt: skip
SIZES = (0, 1, 15, 16, 17, 4095, 65_536, 65_537, (1 << 20) + 3)


@pytest.fixture(scope="module")
def crypto():
    found = _native.Crypto.open()
    assert found.reason == "" and found.version.startswith("OpenSSL 3")
    return found


def noise(size: int, seed: int = 1) -> np.ndarray:
    return np.frombuffer(np.random.default_rng(seed).bytes(size), np.uint8)


def sealed(crypto, text, key=KEY, nonce=NONCE, aad=AAD) -> tuple[np.ndarray, bytes]:
    target = np.empty_like(text)
    return target, crypto.seal(key, nonce, aad, text, target)


@pytest.mark.parametrize("name", list(VECTORS))
def test_what_the_standard_says_comes_out(crypto, name):
    key, nonce, *rest = VECTORS[name]
    aad, text, expected, tag = map(bytes.fromhex, rest)
    target = bytearray(len(text))
    assert crypto.seal(key, nonce, aad, text, target) == tag and bytes(target) == expected
    assert crypto.unseal(key, nonce, aad, tag, target, target) and bytes(target) == text


@pytest.mark.parametrize("size", SIZES)
def test_every_size_comes_back_in_place_and_beside(crypto, size):
    text = noise(size)
    hidden, tag = sealed(crypto, text)
    beside = np.empty_like(text)
    assert crypto.unseal(KEY, NONCE, AAD, tag, hidden, beside) and np.array_equal(beside, text)
    place = text.copy()
    assert crypto.seal(KEY, NONCE, AAD, place, place) == tag and np.array_equal(place, hidden)
    assert crypto.unseal(KEY, NONCE, AAD, tag, place, place) and np.array_equal(place, text)
    if size >= 16:
        assert not np.array_equal(hidden, text)


@pytest.mark.parametrize("wrong", ["key", "nonce", "aad", "tag"])
def test_another_key_nonce_header_or_tag_opens_nothing_and_leaves_zeros(crypto, wrong):
    hidden, tag = sealed(crypto, noise(4096))
    right = {"key": KEY, "nonce": NONCE, "aad": AAD, "tag": tag}
    for bit in (0, 8 * len(right[wrong]) - 1):
        changed = bytearray(right[wrong])
        changed[bit // 8] ^= 1 << bit % 8
        target = noise(4096, 2).copy()
        assert not crypto.unseal(*(right | {wrong: bytes(changed)}).values(), hidden, target)
        assert not target.any()


def test_a_missing_header_opens_nothing(crypto):
    hidden, tag = sealed(crypto, noise(64))
    assert not crypto.unseal(KEY, NONCE, b"", tag, hidden, np.empty_like(hidden))


def test_every_flipped_bit_is_seen(crypto):
    hidden, tag = sealed(crypto, noise(64))
    for bit in range(8 * len(hidden)):
        changed = hidden.copy()
        changed[bit // 8] ^= 1 << bit % 8
        assert not crypto.unseal(KEY, NONCE, AAD, tag, changed, changed) and not changed.any()


@pytest.mark.parametrize("at", [0, 500_000, 1_048_575])
def test_a_flipped_bit_of_a_large_one_is_seen_wherever_it_is(crypto, at):
    hidden, tag = sealed(crypto, noise(1 << 20))
    hidden[at] ^= 4
    assert not crypto.unseal(KEY, NONCE, AAD, tag, hidden, hidden) and not hidden.any()


def test_what_was_cut_off_opens_nothing(crypto):
    hidden, tag = sealed(crypto, noise(64))
    assert not crypto.unseal(KEY, NONCE, AAD, tag, hidden[:63], np.empty(63, np.uint8))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"key": b"k" * 16}, "key has 32"), ({"nonce": b"n" * 16}, "nonce has 12"), ({"nonce": b""}, "nonce has 12")],
    ids=["key", "long nonce", "no nonce"],
)
def test_wrong_sizes_are_refused(crypto, wrong, said):
    with pytest.raises(ValueError, match=said):
        sealed(crypto, noise(16), **wrong)
    with pytest.raises(ValueError, match=said):
        _native.Seal(crypto, **({"key": KEY, "nonce": NONCE, "aad": AAD} | wrong))


def test_a_short_tag_and_unequal_buffers_are_refused(crypto):
    with pytest.raises(ValueError, match="tag has 16"):
        crypto.unseal(KEY, NONCE, AAD, b"t" * 12, noise(16), np.empty(16, np.uint8))
    with pytest.raises(ValueError, match="same size"):
        crypto.seal(KEY, NONCE, AAD, noise(16), np.empty(17, np.uint8))


def test_a_target_that_can_t_be_written_is_refused(crypto):
    with pytest.raises(TypeError):
        crypto.seal(KEY, NONCE, AAD, noise(16), b"x" * 16)


def test_many_threads_at_once_get_what_one_gets(crypto):
    texts = [noise(200_000, seed) for seed in range(8)]
    alone = [sealed(crypto, text, nonce=bytes([n]) * 12)[1] for n, text in enumerate(texts)]
    found: list[list[bytes]] = [[] for _ in texts]

    def work(n: int) -> None:
        for _ in range(20):
            found[n].append(sealed(crypto, texts[n], nonce=bytes([n]) * 12)[1])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[tag] * 20 for tag in alone]


def test_a_missing_library_is_a_reason_and_no_error():
    missing = _native.Crypto.open("/nowhere/libcrypto.so.3")
    assert missing.reason.startswith("no OpenSSL 3: /nowhere/libcrypto.so.3") and missing.version == ""
    with pytest.raises(ValueError, match="no OpenSSL 3"):
        missing.seal(KEY, NONCE, AAD, b"", bytearray())
    with pytest.raises(ValueError, match="no OpenSSL 3"):
        _native.Seal(missing, KEY, NONCE, AAD)


def test_a_library_that_is_another_is_a_reason_too():
    assert _native.Crypto.open("libm.so.6").reason == "no OpenSSL 3: the library lacks OpenSSL_version"


def test_nothing_of_openssl_is_loaded_before_it_is_opened():
    program = "from kvtier import _native; print('libcrypto' in open('/proc/self/maps').read())"
    places = {"PYTHONPATH": str(Path(_native.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-S", "-P", "-c", program], capture_output=True, text=True, env=places)
    assert done.stdout == "False\n", done.stderr
