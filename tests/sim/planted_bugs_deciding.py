"""Bugs planted in what follows from decisions; see planted_bugs.py."""

from collections.abc import Callable
from dataclasses import replace

from kvtier.block import ABSENT, BELOW
from kvtier.decision import Decision
from kvtier.store import BlockStore

from .planting import bugs_of

# --- what is offered ---------------------------------------------------------------------------------------------


def a_cut_offers_one_block_too_few(store: BlockStore) -> None:
    sound = store.leases._cut
    store.leases._cut = lambda slots, tier, matched, *how: sound(
        slots, tier, replace(matched, cpu_blocks=max(0, matched.cpu_blocks - 1)), *how
    )


def what_is_below_is_staged_though_only_ram_is_chosen(store: BlockStore) -> None:
    _stage_all(store, lambda tiers, end: not tiers and end)


def what_is_below_is_staged_though_nothing_is_chosen(store: BlockStore) -> None:
    _stage_all(store, lambda tiers, end: not tiers and not end)


def _stage_all(store: BlockStore, when: Callable[[tuple[str, ...], int], object]) -> None:
    sound = store.leases._wanted

    def wanted(one, slots, drives, away, tiers, end):
        all_of_it = (("nvme", "remote"), len(slots)) if when(tiers, end) else (tiers, end)
        return sound(one, slots, drives, away, *all_of_it)

    store.leases._wanted = wanted


def what_is_not_offered_is_called_absent(store: BlockStore) -> None:
    sound = store.leases._cut

    def cut(slots, *how):
        before = slots.copy()
        end = sound(slots, *how)
        slots[(before < BELOW) & (slots == BELOW)] = ABSENT
        return end

    store.leases._cut = cut


def what_leases_have_no_room_for_is_called_absent(store: BlockStore) -> None:
    sound = store.leases._open

    def open_(asker, lease, slots, wanted):
        before = slots.copy()
        wanted = sound(asker, lease, slots, wanted)
        slots[(before < BELOW) & (slots == BELOW)] = ABSENT
        return wanted

    store.leases._open = open_


def what_is_offered_is_not_pinned(store: BlockStore) -> None:
    sound, pin = store.leases._open, store.leases._pin

    def open_(*lease):
        store.leases._pin = lambda slots, slot_bytes: None
        wanted = sound(*lease)
        store.leases._pin = pin
        return wanted

    store.leases._open = open_


def take_what_was_chosen(store: BlockStore, against: Callable[[Decision], bool]) -> None:
    """Whatever speaks against it."""
    sound = store.decisions.decide

    def decide(asker, *question):
        tier, decision = sound(asker, *question), store.decisions._waiting[asker]
        return decision.chosen.candidate.tier if decision.chosen and against(decision) else tier

    store.decisions.decide = decide


def shadow_loads(store: BlockStore) -> None:
    take_what_was_chosen(store, lambda decision: decision.mode == "shadow")


def a_held_out_request_loads_anyway(store: BlockStore) -> None:
    take_what_was_chosen(store, lambda decision: decision.held_out)


def a_tier_that_is_off_is_used(store: BlockStore) -> None:
    sound = store.decisions.guard.is_on
    store.decisions.guard.is_on = lambda tier, now: sound(tier, now) or True


# --- how long it is waited for -----------------------------------------------------------------------------------


def that_a_request_could_run_is_not_looked_at(store: BlockStore) -> None:
    store.leases.due = store.decisions.due


def that_a_request_could_run_is_forgotten(store: BlockStore) -> None:
    store.decisions.due = lambda asker, now: None


def what_stands_still_is_waited_for(store: BlockStore) -> None:
    sound = store.lower.staging.outlook
    store.lower.staging.outlook = lambda now: [
        (asker, {tier: min(seconds, 1.0) for tier, seconds in remaining.items()}) for asker, remaining in sound(now)
    ]


def a_slow_start_is_taken_for_standing_still(store: BlockStore) -> None:
    staging = store.lower.staging
    sound = staging.next

    def next_(tier, ticket, now):
        before = {asker: mine.parts[tier].moved_at for asker, mine in staging.waiting.items()}
        order = sound(tier, ticket, now)
        for asker, mine in staging.waiting.items():
            mine.parts[tier].moved_at = before[asker]
        return order

    staging.next = next_


def a_lookup_that_is_cut_off_still_waits(store: BlockStore) -> None:
    sound, waiting = store.leases._cut_short, store.lower.staging.waiting

    def cut_short(asker, *why):
        before = waiting[asker]
        sound(asker, *why)
        waiting[asker] = before

    store.leases._cut_short = cut_short


def a_lookup_that_is_cut_off_is_told_of_nothing(store: BlockStore) -> None:
    sound = store.leases._cut_short

    def cut_short(asker, *why):
        answer = store.lower.staging.waiting[asker].answer
        answer[answer < BELOW] = BELOW
        sound(asker, *why)

    store.leases._cut_short = cut_short


# --- what the drives' link knows -----------------------------------------------------------------------------------


def drop_otherwise_in(store: BlockStore, method: str, drop: Callable[[int, float], None]) -> None:
    """While this method of staging runs, the link's `drop` is another."""
    staging, link = store.lower.staging, store.lower.link
    sound, right = getattr(staging, method), link.drop

    def wrapped(*arguments):
        link.drop = drop
        result = sound(*arguments)
        link.drop = right
        return result

    setattr(staging, method, wrapped)


def what_nobody_waits_for_stays_queued(store: BlockStore) -> None:
    drop_otherwise_in(store, "forget", lambda n, now: None)


def a_read_that_two_wait_for_is_queued_twice(store: BlockStore) -> None:
    drop_otherwise_in(store, "next", lambda n, now: None)


def the_link_learns_from_reads_that_failed(store: BlockStore) -> None:
    drop_otherwise_in(store, "finished", lambda n, now: store.lower.link.done(n, now))


def the_link_never_hears_of_what_came(store: BlockStore) -> None:
    store.lower.link.done = lambda n, now: None


# --- what is said of it --------------------------------------------------------------------------------------------


def a_decision_stays_open_when_its_engine_leaves(store: BlockStore) -> None:
    store.decisions.leave = lambda engine: None


def a_decision_waits_for_an_engine_that_is_leaving(store: BlockStore) -> None:
    sound, forget = store.leases.leaving, store.decisions.forget

    def leaving(*engine):
        store.decisions.forget = lambda asker: None
        sound(*engine)
        store.decisions.forget = forget

    store.leases.leaving = leaving


def a_released_lookup_waits_for_its_decision(store: BlockStore) -> None:
    sound, forget = store.leases.release, store.decisions.forget

    def release(*lease):
        store.decisions.forget = lambda asker: None
        n = sound(*lease)
        store.decisions.forget = forget
        return n

    store.leases.release = release


def a_decision_is_logged_twice(store: BlockStore) -> None:
    sound = store.decisions._end

    def end(decision):
        sound(decision)
        sound(decision)

    store.decisions._end = end


def a_question_that_is_asked_again_is_never_logged(store: BlockStore) -> None:
    sound = store.decisions._remember

    def remember(decision):
        store.decisions._open.pop((decision.engine, decision.ask.request), None)
        sound(decision)

    store.decisions._remember = remember


def an_outcome_is_passed_over(store: BlockStore) -> None:
    store.outcome = lambda engine, request, counts, now: None


def all_is_said_to_be_offered(store: BlockStore) -> None:
    sound = store.decisions.answered

    def answered(asker, offered, *how):
        sound(asker, {tier: n + 1 for tier, n in offered.items()}, *how)

    store.decisions.answered = answered


def why_it_was_cut_off_is_not_said(store: BlockStore) -> None:
    sound = store.decisions.answered
    store.decisions.answered = lambda asker, offered, now, reason="": sound(asker, offered, now)


def the_wrong_engine_is_blamed(store: BlockStore) -> None:
    sound = store.ram.ghosts.add
    store.ram.ghosts.add = lambda key, cause: sound(key, cause.replace("engine-0", "engine-1"))


def what_the_drives_had_to_forget_is_not_remembered(store: BlockStore) -> None:
    sound = store.ram.ghosts.add
    store.ram.ghosts.add = lambda key, cause: None if "drives was needed" in cause else sound(key, cause)


def a_namespace_differs_from_itself(store: BlockStore) -> None:
    sound = store.decisions._witnesses.add
    store.decisions._witnesses.add = lambda witness, namespace: sound(witness, "another namespace")


BUGS_IN_DECIDING = bugs_of(globals(), _stage_all, take_what_was_chosen, drop_otherwise_in)
