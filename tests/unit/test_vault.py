"""The vault: a data key a tenant, which nobody can open without the master key, and nobody at all once it is shredded."""

import os
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from vaults import AAD, BLUE, GREEN, RED, SECRET, is_legible, of_file, opened, written

from kvtier import _native
from kvtier.errors import DaemonError
from kvtier.tiers import vault as module
from kvtier.tiers.vault import NOBODY, RECORD_BYTES

OVERWRITE = """
import sys
from pathlib import Path
from kvtier.tiers.master_key import MasterKey
from kvtier.tiers.vault import Vault
vault = Vault(Path(sys.argv[1]), b"s" * 16, MasterKey(bytes(range(32))), {})
print(len(vault), flush=True)
vault.sealing(b"red.....", b"")
vault.sync()
vault.shred(b"red.....")
vault.sync()
"""


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "keys"


# --- keys --------------------------------------------------------------------------------------------------------


def test_what_was_sealed_is_opened_in_the_next_life(path):
    blocks: Counter = Counter()
    vault = opened(path, blocks)
    mine = {tenant: written(vault, tenant, blocks) for tenant in (RED, BLUE, NOBODY)}
    assert len({sealing.serial for sealing, _ in mine.values()}) == 3 == len(vault)
    vault.close()
    vault = opened(path, blocks)
    assert len(vault) == 3 and vault.notes == []
    assert all(is_legible(vault, *one) for one in mine.values())
    assert vault.sealing(RED, AAD).serial == mine[RED][0].serial, "it goes on with the key that it has"
    vault.close()


def test_no_nonce_is_used_twice(path):
    vault = opened(path)
    assert len({vault.sealing(RED, AAD).nonce for _ in range(2000)}) == 2000
    vault.close()


def test_neither_keys_nor_text_stand_in_the_file_and_it_is_for_its_owner_alone(path):
    blocks: Counter = Counter()
    vault = opened(path, blocks)
    written(vault, RED, blocks)
    vault.sync()
    content = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (key,) = vault._keys.values()
    plain = bytearray(32)
    aad = vault._record_aad(next(iter(vault._keys)), RED)
    assert vault._master.crypto.unseal(vault._master.wrapping, key.nonce, aad, key.tag, key.wrapped, plain)
    assert bytes(plain) not in content and SECRET not in content and vault._master.wrapping not in content
    vault.close()


def test_a_key_goes_with_its_last_block(path):
    blocks: Counter = Counter()
    vault = opened(path, blocks)
    sealing, _ = written(vault, RED, blocks)
    vault.drop_unused([sealing.serial])
    assert len(vault) == 1
    del blocks[sealing.serial]
    under_way = vault.sealing(RED, AAD)
    vault.drop_unused([sealing.serial])
    assert len(vault) == 1, "a block is being written with it"
    vault.sync()
    assert RED in path.read_bytes()
    vault.over(under_way)
    vault.sync()
    assert len(vault) == 0 and RED not in path.read_bytes()
    vault.close()


def test_after_so_many_blocks_a_tenant_gets_another_key_and_has_both(path, monkeypatch):
    monkeypatch.setattr(module, "WRITES_MAX", 3)
    monkeypatch.setattr(module, "RESERVED", 1)
    blocks: Counter = Counter()
    vault = opened(path, blocks)
    mine = [written(vault, RED, blocks) for _ in range(7)]
    assert [len(list(one)) for one in (set(blocks.values()), blocks)] == [2, 3], blocks
    vault.close()
    vault = opened(path, blocks)
    assert all(is_legible(vault, *one) for one in mine)
    assert vault.sealing(RED, AAD).serial == mine[-1][0].serial, "the newest of them is used"
    assert vault.shred(RED) == 3
    vault.close()


def test_what_may_have_been_written_before_a_crash_counts(path, monkeypatch):
    monkeypatch.setattr(module, "WRITES_MAX", 10)
    monkeypatch.setattr(module, "RESERVED", 10)
    blocks: Counter = Counter()
    vault = opened(path, blocks)
    first, _ = written(vault, RED, blocks)
    vault.close()
    vault = opened(path, blocks)
    assert vault.sealing(RED, AAD).serial != first.serial
    vault.close()


def test_who_finds_no_room_shares_the_key_of_those_without_a_name_which_is_shredded_for_none_of_them(path, monkeypatch):
    monkeypatch.setattr(module, "KEYS_MAX", 3)
    blocks: Counter = Counter()
    vault = opened(path, blocks)
    red, blue, green = (written(vault, tenant, blocks) for tenant in (RED, BLUE, GREEN))
    nobody, _ = written(vault, NOBODY, blocks)
    assert len(vault) == 3 and nobody.serial == green[0].serial not in (red[0].serial, blue[0].serial)
    assert vault.shred(GREEN) == 0 and is_legible(vault, *green)
    assert vault.shred(RED) == 1
    assert written(vault, GREEN, blocks)[0].serial != nobody.serial, "there is room again"
    vault.close()


def test_those_without_a_name_get_another_key_even_where_there_is_no_room(path, monkeypatch):
    monkeypatch.setattr(module, "KEYS_MAX", 2)
    monkeypatch.setattr(module, "WRITES_MAX", 2)
    blocks: Counter = Counter()
    vault = opened(path, blocks)
    mine = [written(vault, tenant, blocks) for tenant in (RED, NOBODY, NOBODY, NOBODY, BLUE)]
    assert len(vault) == 3 and mine[4][0].serial == mine[3][0].serial != mine[2][0].serial
    vault.close()
    vault = opened(path, blocks)
    assert all(is_legible(vault, *one) for one in mine)
    vault.close()


# --- shredding ---------------------------------------------------------------------------------------------------


def test_what_is_shredded_is_opened_by_nobody_not_even_from_a_copy_of_the_drive(path):
    blocks: Counter = Counter()
    vault = opened(path, blocks)
    red, blue = written(vault, RED, blocks), written(vault, BLUE, blocks)
    assert vault.shred(RED) == 1 == vault.shredded
    vault.sync()
    assert not is_legible(vault, *red) and is_legible(vault, *blue)
    content = path.read_bytes()
    assert RED not in content and content.count(bytes(RECORD_BYTES)) == 1, "its record is zeros, in its place"
    vault.close()
    again = opened(path, blocks)
    assert not is_legible(again, *red) and is_legible(again, *blue)
    fresh = again.sealing(RED, AAD)
    assert fresh.serial != red[0].serial, "what comes later has a key of its own"
    again.close()


def test_of_whom_there_is_nothing_nothing_is_shredded(path):
    vault = opened(path)
    assert vault.shred(RED) == 0
    vault.close()


def test_a_block_that_was_on_its_way_when_its_key_was_shredded_is_nobody_s(path):
    vault = opened(path)
    under_way = vault.sealing(RED, AAD)
    assert vault.shred(RED) == 1
    vault.over(under_way)
    assert len(vault) == 0 and not vault._writing, "nothing of it is left over"
    assert vault.sealing(RED, AAD).serial != under_way.serial
    vault.close()


# --- what may be wrong -------------------------------------------------------------------------------------------


def test_another_master_key_is_refused_and_nothing_is_lost(path):
    blocks: Counter = Counter()
    vault = opened(path, blocks)
    mine = written(vault, RED, blocks)
    vault.close()
    before = path.read_bytes()
    with pytest.raises(DaemonError, match=r"another encryption\.key_file.* name the former one"):
        opened(path, secret=b"x" * 32)
    assert path.read_bytes() == before
    vault = opened(path, blocks)
    assert is_legible(vault, *mine)
    vault.close()


@pytest.mark.parametrize("damage", ["header", "cut", "empty", "version"])
def test_a_file_that_is_no_good_is_kept_beside_and_said_to_be(path, damage):
    vault = opened(path)
    vault.close()
    content = bytearray(path.read_bytes())
    if damage == "header":
        content[9] ^= 1
    path.write_bytes({"cut": content[:50], "empty": b""}.get(damage, bytes(content)))
    if damage == "version":
        content[4] = 9
        content[-4:] = _native.crc32c(bytes(content[:-4])).to_bytes(4, "little")
        path.write_bytes(bytes(content))
    vault = opened(path)
    assert len(vault) == 0 and len(vault.notes) == 1 and "set-aside" in vault.notes[0]
    assert len(list(path.parent.iterdir())) == 2
    vault.close()


def test_the_keys_of_another_store_are_not_taken(path):
    blocks: Counter = Counter()
    vault = opened(path, blocks)
    written(vault, RED, blocks)
    vault.close()
    vault = opened(path, blocks, store=b"t" * 16)
    assert len(vault) == 0 and "another store" in vault.notes[0]
    vault.close()


def test_a_damaged_record_costs_that_key_alone(path):
    blocks: Counter = Counter()
    vault = opened(path, blocks)
    red, blue = written(vault, RED, blocks), written(vault, BLUE, blocks)
    vault.close()
    content = bytearray(path.read_bytes())
    content[RECORD_BYTES + 40] ^= 1
    path.write_bytes(bytes(content))
    vault = opened(path, blocks)
    assert len(vault) == 1 and not is_legible(vault, *red) and is_legible(vault, *blue)
    vault.close()


def test_a_record_that_was_put_to_another_tenant_opens_nothing(path):
    """Whoever can write there, but has no key."""
    blocks: Counter = Counter()
    vault = opened(path, blocks)
    red = written(vault, RED, blocks)
    vault.close()
    content = bytearray(path.read_bytes())
    content[RECORD_BYTES + 4 : RECORD_BYTES + 12] = BLUE
    content[-4:] = _native.crc32c(bytes(content[RECORD_BYTES:-4])).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    vault = opened(path, blocks)
    assert len(vault) == 0 and not is_legible(vault, *red)
    assert is_legible(vault, *written(vault, BLUE, blocks)), "the tenant gets a key that opens"
    vault.close()
    assert len(of_file(path)) == 1


def test_a_copy_of_a_record_doesn_t_outlive_a_shred(path):
    blocks: Counter = Counter()
    vault = opened(path, blocks)
    red = written(vault, RED, blocks)
    vault.close()
    path.write_bytes(path.read_bytes() + of_file(path)[0])
    vault = opened(path, blocks)
    assert vault.shred(RED) == 1
    vault.close()
    assert of_file(path) == [] and not is_legible(opened(path, blocks), *red)


@pytest.mark.parametrize(
    ("point", "keys"),
    [
        ("keys_written_before_replace:kill@1", 0),
        ("keys_replaced:kill@1", 0),
        ("keys_written:kill@1", 1),
        ("keys_synced:kill@1", 1),
        ("keys_written:kill@2", 0),
        ("keys_synced:kill@2", 0),
    ],
)
def test_a_crash_leaves_the_file_as_it_was_or_as_it_was_to_be(path, point, keys):
    program = [sys.executable, "-c", OVERWRITE, str(path)]
    assert subprocess.run(program, env={**os.environ, "KVTIER_FAILPOINT": point}).returncode == -9
    vault = opened(path)
    assert len(vault) == keys and vault.notes == []
    vault.close()
    assert opened(path).notes == []
