"""Bugs planted in what one daemon hands over to the next; see planted_bugs.py. Each spoils a Handover."""

from collections.abc import Callable

import numpy as np

from kvtier.handing_over import STAYS_HERE
from kvtier.handover import Handover


def slots_of_those_who_still_copy_are_free(handover: Handover) -> None:
    handover.facts["leftovers"] = []


def what_is_lent_to_those_who_still_copy_is_free(handover: Handover) -> None:
    for left in handover.facts["leftovers"]:
        left["lent"] = []


def a_key_names_the_slot_of_another_block(handover: Handover) -> None:
    handover.columns["keys"] = np.roll(handover.columns["keys"], 1)


def a_namespace_begins_with_its_first_epoch_again(handover: Handover) -> None:
    for namespace in handover.facts["namespaces"]:
        namespace[2] = 0


def what_is_to_stay_on_its_node_may_leave_it(handover: Handover) -> None:
    handover.columns["flags"] = handover.columns["flags"] & ~np.uint8(STAYS_HERE)


def a_slab_is_cut_otherwise(handover: Handover) -> None:
    sizes = handover.columns["slab_sizes"]
    handover.columns["slab_sizes"] = np.where(sizes > 0, sizes[sizes > 0].min(initial=2**40), 0)


BUGS_IN_UPGRADES: list[Callable[[Handover], None]] = [
    slots_of_those_who_still_copy_are_free,
    what_is_lent_to_those_who_still_copy_is_free,
    a_key_names_the_slot_of_another_block,
    a_namespace_begins_with_its_first_epoch_again,
    what_is_to_stay_on_its_node_may_leave_it,
    a_slab_is_cut_otherwise,
]
