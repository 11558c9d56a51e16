"""Damage to files of a tier, as drives and accidents do it: bits flip, pages are zeroed, ends are cut off or grow."""

import random
from pathlib import Path

PAGE = 4096
FILES = ("blocks", "catalogue.mdb", "format")


def flip_bits(file: Path, chance: random.Random) -> str:
    with file.open("r+b") as opened:
        size = file.stat().st_size
        places = [chance.randrange(size) for _ in range(chance.choice((1, 1, 8, 64)))]
        for place in places:
            opened.seek(place)
            byte = opened.read(1)[0]
            opened.seek(place)
            opened.write(bytes([byte ^ 1 << chance.randrange(8)]))
    return f"{len(places)} bits flipped, the first in byte {places[0]}"


def zero_pages(file: Path, chance: random.Random) -> str:
    pages = range(max(1, file.stat().st_size // PAGE))
    chosen = chance.sample(pages, min(len(pages), chance.choice((1, 1, 4, 16))))
    with file.open("r+b") as opened:
        for page in chosen:
            opened.seek(page * PAGE)
            opened.write(bytes(min(PAGE, file.stat().st_size - page * PAGE)))
    return f"pages {sorted(chosen)} zeroed"


def fill_pages(file: Path, chance: random.Random) -> str:
    """With other pages of the same file: each is good by itself, and at the wrong place."""
    pages = range(max(1, file.stat().st_size // PAGE))
    source, target = chance.choice(pages), chance.choice(pages)
    with file.open("r+b") as opened:
        opened.seek(source * PAGE)
        content = opened.read(PAGE)
        opened.seek(target * PAGE)
        opened.write(content)
    return f"page {source} copied over page {target}"


def cut_off(file: Path, chance: random.Random) -> str:
    size = chance.randrange(file.stat().st_size)
    with file.open("r+b") as opened:
        opened.truncate(size)
    return f"cut off at {size}"


def append(file: Path, chance: random.Random) -> str:
    n = chance.randint(1, 3 * PAGE)
    with file.open("ab") as opened:
        opened.write(chance.randbytes(n))
    return f"{n} bytes appended"


def remove(file: Path, _: random.Random) -> str:
    file.unlink()
    return "removed"


KINDS = (flip_bits, flip_bits, flip_bits, zero_pages, zero_pages, fill_pages, cut_off, append, remove)


def damage(folder: Path, chance: random.Random) -> str:
    """One of them; says what was done."""
    file = folder / chance.choice(FILES)
    return f"{file.name}: {chance.choice(KINDS)(file, chance)}"
