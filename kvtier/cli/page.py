"""What commands print for people: plain tables, on a terminal or not, in which a name is never more than a name."""

from rich.console import Console
from rich.table import Table

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
