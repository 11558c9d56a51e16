"""Real text as tokens: the sources of real_kv.py, and after them all of the interpreter's own library, file by file.

Deterministic on one Python; another's library differs a little. Runs inside the engine's environment.
"""

import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import real_kv

Encode = Callable[[str], list[int]]
NOT_READ = {"test", "tests", "idlelib", "site-packages", "dist-packages", "lib2to3", "__pycache__"}


class OutOfText(Exception):
    """All that there is was taken."""


def encoder(model: Path) -> Encode:
    """The model's tokenizer, without special tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False, verbose=False))


class Library:
    """Stretches of text as tokens. None overlaps another, for none is given twice."""

    def __init__(self, encode: Encode) -> None:
        self._encode, self._pages, self._left = encode, _pages(), list[int]()

    def take(self, tokens: int) -> tuple[int, ...]:
        """The next so many. Raises OutOfText."""
        while len(self._left) < tokens:
            page = next(self._pages, None)
            if page is None:
                raise OutOfText(f"the interpreter's library has less than {tokens} tokens left")
            self._left += self._encode(page)
        taken, self._left = tuple(self._left[:tokens]), self._left[tokens:]
        return taken


def _pages() -> Iterator[str]:
    yield from real_kv.texts().values()
    library = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(library.rglob("*.py")):
        # What real_kv reads is not read again.
        if not NOT_READ & set(file.relative_to(library).parts) and file.name not in ("topics.py", "inspect.py", "ast.py"):
            yield file.read_text(errors="replace")
