"""What commands print for people: plain tables, on a terminal or not, in which a name is never more than a name."""

from rich.console import Console
from rich.table import Table

from kvtier.config import GIB, KIB, MIB, TIB

FILE_COLUMNS = 160  # where there is no terminal to ask


def page() -> Console:
    """Prints what it is given: brackets and colons in it mean nothing."""
    console = Console(markup=False, emoji=False, highlight=False)
    return console if console.is_terminal else Console(markup=False, emoji=False, highlight=False, width=FILE_COLUMNS)


def table(*columns: str) -> Table:
    """The first column and those without a name hold words, the others numbers."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number == 0 or not column or column == "processes" else "right")
    return made


def harmless(text: object) -> str:
    """For what comes from somebody else's request: no line of its own, and no command to a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


# --- short, for narrow columns -------------------------------------------------------------------------------


def short_size(size: float) -> str:
    """1.5G; nothing for 0."""
    for unit, scale in (("T", TIB), ("G", GIB), ("M", MIB), ("K", KIB)):
        if size >= scale:
            return f"{_digits(size / scale)}{unit}"
    return f"{size:.0f}" if size else ""


def short_count(n: float) -> str:
    """12.3k"""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= scale:
            return f"{_digits(n / scale)}{unit}"
    return f"{n:.0f}"


def short_time(seconds: float) -> str:
    """45s, 3m, 7h, 12d"""
    for unit, scale in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= scale:
            return f"{seconds // scale:.0f}{unit}"
    return f"{max(0, int(seconds))}s"


def _digits(value: float) -> str:
    """Three at most, and four of a thousand."""
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
