"""A remote that answers nothing, beside a whole simulation whose second implementation knows of no remote: whatever it
changes, in an answer or in when it comes, is noticed.

Either everybody knows that it is away; or nobody does: questions are asked, and never answered. Then it still erases, for
whoever forgets a session waits for that, and takes no block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtier.admission import Budget
from kvtier.transfer import Demote, Erase, Finished, Remember, Seek

if TYPE_CHECKING:
    from .simulation import Simulation

BYTES_PER_S = 2**30


class DeadRemote:
    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.questions = 0  # that were never answered

    @property
    def is_known_to_be_away(self) -> bool:
        return not self.sim.operator.is_here

    def attach(self) -> None:
        store = self.sim.store
        store.attach_remote(Budget.of_rate(BYTES_PER_S, self.sim.now), None, 1.0)
        store.decisions.patience_to_ask = lambda *question: 0.0  # nobody thinks that an answer is worth waiting for

    def serve(self) -> None:
        store, is_away = self.sim.store, self.is_known_to_be_away
        store.set_remote_away(is_away)
        self.sim.expected.decisions.is_remote_away = is_away
        for order in store.remote_transfers(self.sim.now, not is_away):
            if isinstance(order, Seek):
                self.questions += 1
                assert not is_away, "it is away and is asked"
            else:
                assert isinstance(order, Demote | Erase | Remember), f"{order}, and nobody found anything"
                assert isinstance(order, Remember) or not is_away, f"it is away and is to {order}"
                store.remote_finished(Finished(order.ticket, "full" if isinstance(order, Demote) else ""), self.sim.now)
