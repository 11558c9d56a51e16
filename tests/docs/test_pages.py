"""What the pages say is there is there: links, messages, settings, counters, commands, tests."""

import ast
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import make_words
import pytest
from man_page import commands_of

from kvtier.config import CONNECTOR, DAEMON
from kvtier.decision import REASONS
from kvtier.metrics import rows
from kvtier.stats import COUNTERS

ROOT = make_words.ROOT
GENERATED = {f"{name}.md" for name in make_words.REFERENCE}
OWN = ["README.md", "connectors/README.md", "benchmarks/README.md"]
PAGES = sorted([*OWN, *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
SUBJECTS = {option.name.split(".")[0] for option in DAEMON if "." in option.name}
NAMES = {option.name for option in DAEMON + CONNECTOR}


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def prose_of(page: str) -> str:
    """Without what is shown as it is typed."""
    return FENCE.sub("", text_of(page))


# --- links ---------------------------------------------------------------------------------------------------


def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    found = re.findall(r"^#+ +(.*?) *$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES)
def test_no_link_is_dead(page):
    dead = []
    for link in LINK.findall(text_of(page)):
        name, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (ROOT / page).parent / name if name else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            dead.append(link)
    assert dead == []


def test_every_page_can_be_reached_from_the_readme():
    reached, waiting = set(), ["README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for link in LINK.findall(text_of(page)):
            target = ((ROOT / page).parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target.is_file():
                waiting.append(str(target.relative_to(ROOT)))
    assert sorted(set(PAGES) - reached) == []


# --- messages ------------------------------------------------------------------------------------------------


@cache
def said_by_the_source() -> str:
    """All that the source may print: strings of Python, joined where they are written in pieces, and of C++."""
    found = []
    for folder in ("kvtier", "connectors"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    found.append("".join(p.value if isinstance(p, ast.Constant) else "\0" for p in node.values))
    for file in sorted((ROOT / "native").glob("*.cpp")):
        found.append(re.sub(r'"\s*"', "", file.read_text()))
    return "\n".join(found)


def symptoms() -> list[str]:
    """The texts in code of first columns of docs/troubleshooting.md."""
    cells = re.findall(r"^\| (.*?) \| ", prose_of("docs/troubleshooting.md"), re.MULTILINE)
    return [code for cell in cells for code in CODE.findall(cell)]


def known_words() -> set[str]:
    """What may stand there beside messages."""
    return {*NAMES, *COUNTERS, *REASONS, *(row.name for row in rows())} | {"tier-stats", "PYTHONHASHSEED"}


def test_every_message_that_is_explained_is_said_by_the_source():
    unknown = []
    for text in symptoms():
        if text not in known_words():
            pieces = [piece.strip() for piece in text.split("...") if len(piece.strip()) > 3]
            assert pieces, text
            unknown += [f"{text}: {piece}" for piece in pieces if piece not in said_by_the_source()]
    assert unknown == []


def test_every_reason_not_to_offer_blocks_is_explained():
    assert [reason for reason in REASONS if reason not in symptoms()] == []


# --- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if Path(page).name != "decisions.md"])
def test_every_setting_that_a_page_names_is_one(page):
    named = {code.partition(" = ")[0] for code in CODE.findall(prose_of(page))}
    wrong = []
    for name in named:
        subject, dot, rest = name.partition(".")
        if dot and subject in SUBJECTS and re.fullmatch(r"[a-z_]+", rest) and rest not in ENDINGS and name not in NAMES:
            wrong.append(name)
    assert wrong == []


ENDINGS = {
    "py",
    "md",
    "cpp",
    "lookup",
    "join",
    "begin",
    "release",
    "commit",
    "answered",
    "sock",
    "pace",
    "outcome",
    "crt",
    "key",
}


@pytest.mark.parametrize("page", sorted(f"docs/{name}.md" for name in ("install", "tuning", "troubleshooting")))
def test_every_counter_that_a_page_names_is_one(page):
    words = set(re.findall(r"counters? `(\w+)`", prose_of(page)))
    assert words <= set(COUNTERS)


# --- commands ------------------------------------------------------------------------------------------------


def commands_in(page: str) -> list[str]:
    """Lines of shell that call one of ours, with what was continued on the next line."""
    found = []
    for language, block in FENCE.findall(text_of(page)):
        if language == "sh":
            for line in block.replace("\\\n", " ").splitlines():
                found += [part.partition(" >")[0] for part in re.split(r" (?:&&|\||;) ", line.partition(" #")[0])]
    return [command.strip().removeprefix("sudo ").removesuffix("&").strip() for command in found if "|" not in command]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_shows_is_understood(page):
    wrong = []
    for line in commands_in(page):
        words = shlex.split(line) or [""]
        program = Path(words[0]).name
        if program in make_words.PARSERS:
            try:
                make_words.PARSERS[program]().parse_args(words[1:])
            except SystemExit as ended:
                wrong += [line] if ended.code else []
    assert wrong == []


def test_every_command_of_kvtier_is_named_in_a_page():
    said = "".join(text_of(page) for page in PAGES)
    commands = commands_of(make_words.PARSERS["kvtier"]())
    unnamed = {name for name in commands if f"kvtier {name}" not in said and f"|{name}" not in said}
    assert unnamed <= {"stats"}  # tier-stats


# --- tests ---------------------------------------------------------------------------------------------------


def test_every_test_that_reliability_names_is_there():
    page = text_of("docs/reliability.md")
    missing = []
    for path in re.findall(r"`(tests/[\w/.]+)", page):
        if not (ROOT / path.rstrip(".")).exists():
            missing.append(path)
    for name in re.findall(r"`(?:\w+\.py::)?(test_\w+)`", page):
        done = subprocess.run(["grep", "-rqE", f"def {name}\\(|^{name}$", str(ROOT / "tests")], check=False)
        if done.returncode and not list((ROOT / "tests").rglob(f"{name}.py")):
            missing.append(name)
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page):
        if f"def {name}(" not in (ROOT / path).read_text():
            missing.append(f"{path}::{name}")
    for name in re.findall(r"`(test_\w+\.py)`", page):
        if not list((ROOT / "tests").rglob(name)):
            missing.append(name)
    assert missing == []


def test_every_bug_has_a_finder_and_a_test():
    rows_of = [
        line for line in text_of("docs/reliability.md").partition("## Bugs")[2].splitlines() if line.startswith("| ")
    ]
    for row in rows_of[1:]:
        bug, found_by, test = (cell.strip() for cell in row.strip("|").split(" | "))
        assert bug and found_by and ("`" in test or "planted" in test), row
