"""Bugs planted in what tenants and users have to do with the store; see planted_bugs.py."""

from kvtier.store import BlockStore

from .planting import bugs_of


def what_goes_is_counted_still(store: BlockStore) -> None:
    store.ram.tenants.remove = lambda slot, size: None


def what_is_marked_stays_with_those_without_a_salt(store: BlockStore) -> None:
    sound = store.ram.tenants.number
    store.ram.tenants.number = lambda tag: sound(tag) * 0


def a_tenant_has_more_than_its_quota(store: BlockStore) -> None:
    store.ram.tenants.has_room = lambda number, size, blocks=1: True


def another_tenant_pays_for_a_quota(store: BlockStore) -> None:
    charging = store.ram.charging
    sound = charging._victim

    def victim(number, size, acceptable, now):
        others = [n for n, blocks in enumerate(store.ram.tenants.blocks.tolist()) if blocks and n != number]
        return sound((*others, number)[0], size, acceptable, now)

    charging._victim = victim


def a_tenant_has_any_number_of_leases(store: BlockStore) -> None:
    store.ram.tenants.may_load = lambda number: True


def a_lease_that_is_over_counts_still(store: BlockStore) -> None:
    store.ram.tenants.load_ends = lambda number: None


def what_another_user_had_is_lent(store: BlockStore) -> None:
    store.ram.residue.is_foreign = lambda slot, size, user: False


def nobody_notes_who_is_lent_a_slot(store: BlockStore) -> None:
    store.ram.residue.lent = lambda slot, size, user: None


def a_read_that_failed_leaves_nothing(store: BlockStore) -> None:
    store.ram.residue.filling = lambda slot, size, namespace: None


def what_came_from_below_is_whoevers_slot_it_was(store: BlockStore) -> None:
    store.ram.residue.filling = lambda slot, size, namespace: None
    store.ram.residue.filled = lambda slot, size, namespace: None


BUGS_IN_CROWDS = bugs_of(globals())
