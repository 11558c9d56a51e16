"""What must hold of decisions at any moment. It reads private columns."""

from kvtier.store import BlockStore

from .expected import Expected
from .expected_decisions import ExpectedDecisions


def check(store: BlockStore, expected: Expected) -> None:
    """AssertionError names what is broken."""
    decisions = expected.decisions
    each_has_one_end(store, decisions)
    those_who_wait_are_not_answered_yet(store, expected)
    nothing_was_heard_that_has_no_consequence(decisions)


def each_has_one_end(store: BlockStore, expected: ExpectedDecisions) -> None:
    """The log gets it once; until then it is open."""
    assert list(store.decisions._open) == list(expected.open), "which requests have no outcome yet"
    ended, expected.ended = expected.ended, []
    logged = [(record["engine"], record["request"]) for record in store.decisions.take_ended()]
    assert logged == ended, "which decisions are over"


def those_who_wait_are_not_answered_yet(store: BlockStore, expected: Expected) -> None:
    """A lookup without a request waits too, but nothing was decided for it."""
    assert set(store.decisions._waiting) == set(expected.decisions.asked), "for whom a decision waits"
    waiting = set(expected.below.waiting) if expected.below is not None else set()
    assert set(expected.decisions.asked) <= waiting, "a decision waits for nothing"
    fetching = {(name, lease) for name, engine in store.decisions._engines.items() for lease in engine.fetching}
    assert fetching == expected.decisions.fetching <= set(expected.leases), "what its engine need not compute"


def nothing_was_heard_that_has_no_consequence(expected: ExpectedDecisions) -> None:
    assert not expected.overheard.tiers and not expected.overheard.waits, "it was asked for a decision and ignored it"


def all_is_quiet(store: BlockStore, expected: Expected) -> None:
    """Why a key went is remembered, of all that went and of no other."""
    ghosts, causes = store.ram.ghosts, store.ram.ghosts._causes
    assert {key: causes[n] for key, n in (ghosts._old | ghosts._young).items()} == expected.decisions.ghosts
    assert not store.decisions._waiting, "a decision is never answered"
