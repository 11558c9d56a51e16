"""What is remembered of blocks that went."""

from kvtier.block import block_key
from kvtier.ghosts import CAUSES_MAX, GHOSTS_MAX, Ghosts


def key(i: int) -> bytes:
    return block_key(b"a secret", str(i).encode())


def test_a_key_that_went_is_remembered_with_its_cause():
    ghosts = Ghosts()
    ghosts.add(key(1), "RAM was needed by engine a")
    ghosts.add(key(2), "RAM was needed by engine b")
    assert ghosts.cause(key(1)) == "RAM was needed by engine a"
    assert ghosts.cause(key(2)) == "RAM was needed by engine b"


def test_nothing_is_known_of_a_key_that_never_was():
    assert Ghosts().cause(key(1)) is None


def test_the_newest_cause_counts():
    ghosts = Ghosts()
    ghosts.add(key(1), "first")
    ghosts.add(key(1), "second")
    assert ghosts.cause(key(1)) == "second"


def test_the_newest_half_of_the_limit_is_always_remembered_and_the_oldest_is_forgotten():
    ghosts = Ghosts()
    for i in range(GHOSTS_MAX * 2):
        ghosts.add(key(i), "gone")
    assert all(ghosts.cause(key(i)) for i in range(GHOSTS_MAX * 2 - GHOSTS_MAX // 2, GHOSTS_MAX * 2))
    assert ghosts.cause(key(0)) is None


def test_more_causes_than_the_limit_forget_everything_rather_than_name_a_wrong_one():
    ghosts = Ghosts()
    for i in range(CAUSES_MAX + 1):
        ghosts.add(key(i), f"engine {i}")
    assert ghosts.cause(key(0)) is None
    assert ghosts.cause(key(CAUSES_MAX)) == f"engine {CAUSES_MAX}"
