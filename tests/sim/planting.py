"""How a bug is planted, and found again by those who try each; see planted_bugs.py."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

from kvtier.away import Away
from kvtier.lower import Lower
from kvtier.ram import Ram
from kvtier.transfer import Finished


class Blind(dict):
    """Holds what it holds and says that it doesn't."""

    def __contains__(self, item: object) -> bool:
        return False

    def get(self, item: object, otherwise: object = None) -> object:
        return otherwise


def lie_about_faults(tier: Lower | Away, kind: type) -> None:
    """Whatever failed, this kind of order is taken for done."""
    sound = tier.finished

    def finished(done: Finished, now: float) -> None:
        failed = isinstance(tier._under_way[done.ticket], kind) and done.fault
        sound(replace(done, fault="") if failed else done, now)

    tier.finished = finished


def see_ram_otherwise(tier: Lower | Away, ram: Ram, **how: object) -> None:
    """What its demotions see of RAM."""
    names = ("index", "slots", "tenants", "origin", "stays", "stays_here", "note_below", "pin", "unpin")
    tier.demotions._ram = SimpleNamespace(**{name: getattr(ram, name) for name in names} | how)


def bugs_of(module: dict[str, object], *others: Callable) -> list[Callable]:
    """The functions of a module, by its `globals()`; but `others`, which plant nothing by themselves."""
    mine = {name: it for name, it in module.items() if getattr(it, "__module__", "") == module["__name__"]}
    return [plant for name, plant in mine.items() if callable(plant) and name.islower() and plant not in others]
