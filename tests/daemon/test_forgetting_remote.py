"""What leaves the node and what comes back from there, with a real kvtierd and a real server: what its client wants to stay
stays, and what is forgotten is deleted."""

import threading
from collections.abc import Iterator

import pytest
from admin_caller import caller_of
from chat import Chat, turn
from kvtierd import KVTierd, eventually, root_file, some_keys
from remote.servers import Redis
from terminal import run_here


@pytest.fixture
def daemon(tmp_path, remote) -> Iterator[KVTierd]:
    mine = {"cpu.capacity": "64 MiB", "cost.holdout": 0}
    far = {"remote.url": remote.url, "remote.secret_file": root_file(tmp_path)}
    with KVTierd(tmp_path, mine | far) as daemon:
        yield daemon


def there(remote: Redis) -> int:
    return int(remote.say("DBSIZE"))


def test_what_a_client_wants_on_this_node_only_is_never_sent(daemon, remote):
    with Chat(daemon) as chat:
        for _ in range(2):
            turn(chat, "kept", some_keys(4, "kept"), no_remote=1)
            turn(chat, "shared", some_keys(3))
        eventually(lambda: daemon.counter("remote_refused_max_tier") == 4)
        eventually(lambda: there(remote) == 3)
        assert run_here("kvtier", "drain", "--socket", daemon.socket).returncode == 0
    assert there(remote) == 3


def test_what_is_forgotten_is_deleted_in_the_remote_and_the_rest_stays(daemon, remote):
    with Chat(daemon) as chat:
        for _ in range(2):
            turn(chat, "chat", some_keys(5))
            turn(chat, "other", some_keys(3, "other"))
        eventually(lambda: there(remote) == 8)
        said = run_here("kvtier", "forget", "chat", "--socket", daemon.socket)
        assert said.returncode == 0, said.stderr
        assert "remote: none of these blocks is there any more" in said.stdout
        assert there(remote) == 3


def test_while_the_remote_is_frozen_nothing_is_proven_and_then_it_is_done(daemon, remote):
    with Chat(daemon) as chat, caller_of(daemon) as admin:
        for _ in range(2):
            turn(chat, "chat", some_keys(5))
        eventually(lambda: there(remote) == 5)
        remote.freeze()
        proofs: list[dict] = []
        asking = threading.Thread(target=lambda: proofs.append(admin.forget("chat")))
        asking.start()
        eventually(lambda: daemon.snapshot()["tiers"]["remote"]["is_away"])
        assert proofs == []
        remote.thaw()
        asking.join()
    assert [(proof["sessions"], proof["blocks"]["remote"]) for proof in proofs] == [(1, 5)]
    assert there(remote) == 0
