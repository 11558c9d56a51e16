"""Man pages, completion and the reference say what the source says, and other programs can read them."""

import argparse
import shutil
import subprocess
from pathlib import Path

import make_words
import pytest
from man_page import commands_of, synopsis

from kvtier.config import CONNECTOR, DAEMON
from kvtier.metrics import rows
from kvtier.stats import COUNTERS
from kvtier.usage import Parser

PROGRAMS = sorted(make_words.PARSERS)
MAN_PAGES = sorted(f"{name}.{section}" for name, section in make_words.SECTIONS.items())
BASHES = sorted(f"{name}.bash" for name in PROGRAMS)
ZSHES = sorted(f"_{name}" for name in PROGRAMS)
SYSTEMD = make_words.ROOT / "systemd"


def ended_well(*command: str) -> str:
    """What it printed, all of it."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"LC_ALL": "C.UTF-8", "PATH": PATH})
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


PATH = "/usr/bin:/bin:/usr/local/bin"


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")


def all_parsers() -> list[tuple[str, argparse.ArgumentParser]]:
    """Of every program and every command, by their names."""
    found = []
    for name, parser in make_words.PARSERS.items():
        made = parser()
        found += [(name, made), *((f"{name} {word}", command) for word, command in commands_of(made).items())]
    return found


def test_what_is_generated_is_what_the_source_says_now():
    assert make_words.stale() == [], "make words"


@pytest.mark.parametrize("name", sorted(name for name, _ in all_parsers()))
def test_every_command_says_what_it_does_how_it_is_used_and_how_it_ends(name):
    parser = dict(all_parsers())[name]
    assert parser.description and parser.description.strip().endswith(".")
    assert parser.epilog and "Exit status: 0 " in parser.epilog
    shown = [line.strip() for line in parser.epilog.splitlines() if line.startswith("  ")]
    assert shown and all(name in line for line in shown)
    assert all(action.help for action in parser._actions if not isinstance(action, argparse._SubParsersAction))


def test_every_command_has_one_line_in_the_list():
    for parser in make_words.PARSERS.values():
        for action in parser()._actions:
            if isinstance(action, argparse._SubParsersAction):
                said = {choice.dest: choice.help for choice in action._choices_actions}
                assert set(said) == set(action.choices)
                assert all(text and "\n" not in text and len(text) < 80 for text in said.values())


# --- man pages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAN_PAGES)
def test_mandoc_finds_nothing_to_say(name):
    needs("mandoc")
    assert ended_well("mandoc", "-Tlint", "-Wwarning", str(SYSTEMD / "man" / name)) == ""


@pytest.mark.parametrize("name", MAN_PAGES)
def test_man_shows_it_without_a_warning(name):
    needs("man")
    assert name.split(".")[0].upper() in ended_well("man", "--warnings", "--local-file", str(SYSTEMD / "man" / name))


def test_a_man_page_names_every_option_of_every_command():
    page = (SYSTEMD / "man" / "kvtier.1").read_text().replace("\\-", "-")
    for name, command in commands_of(make_words.PARSERS["kvtier"]()).items():
        section = page[page.index(f".SS {name}\n") :]
        for action in command._actions:
            for option in action.option_strings:
                assert option in ("-h", "--help") or option in section, (name, option)


def test_kvtierd_8_has_every_setting():
    page = (SYSTEMD / "man" / "kvtierd.8").read_text().replace("\\-", "-")
    assert [option.name for option in DAEMON if f"\\fB{option.name} = " not in page] == []


def test_options_that_exclude_each_other_stand_side_by_side():
    parser = Parser(prog="x")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--for", metavar="S")
    group.add_argument("--off", action="store_true")
    parser.add_argument("--set", action="append", metavar="N=V")
    parser.add_argument("file", nargs="*")
    assert synopsis(parser) == [
        ".B x",
        "[\\fB\\-\\-for\\fR \\fIS\\fR | \\fB\\-\\-off\\fR]",
        "[\\fB\\-\\-set\\fR \\fIN=V\\fR] ...",
        "[\\fIFILE\\fR ...]",
    ]


# --- completion ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASHES)
def test_bash_can_read_its_completion(name):
    assert ended_well("bash", "-n", str(SYSTEMD / "completion" / name)) == ""


@pytest.mark.parametrize("name", ZSHES)
def test_zsh_can_read_its_completion(name):
    needs("zsh")
    assert ended_well("zsh", "-n", str(SYSTEMD / "completion" / name)) == ""


def completed(folder: Path, *words: str) -> list[str]:
    """What a real bash offers behind these words, the last of which is being written."""
    line = " ".join(words)
    script = f"""
        source "$1"
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)}) COMP_CWORD={len(words) - 1}
        COMP_LINE='{line}' COMP_POINT={len(line)}
        function=$(complete -p {words[0]} | sed -E 's/.*-F ([^ ]+) .*/\\1/')
        cd "$2" && $function {words[0]} '{words[-1]}' '{words[-2]}' && printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    file = SYSTEMD / "completion" / f"{words[0]}.bash"
    return ended_well("bash", "--norc", "-c", script, "bash", str(file), str(folder)).split()


def test_bash_completes_commands_options_choices_and_files(tmp_path):
    (tmp_path / "kvtier.toml").touch()
    assert completed(tmp_path, "kvtier", "dra") == ["drain"]
    assert completed(tmp_path, "kvtier", "drain", "--ti") == ["--timeout"]
    assert completed(tmp_path, "kvtier", "sessions", "--sort", "by") == ["bytes"]
    assert completed(tmp_path, "kvtierd", "--config", "kv") == ["kvtier.toml"]
    assert "--interval" in completed(tmp_path, "tier-stats", "--")


# --- the reference -------------------------------------------------------------------------------------------


def test_the_reference_has_every_option_every_counter_and_every_metric():
    options, counters, metrics = ((make_words.ROOT / "docs" / f"{name}.md").read_text() for name in make_words.REFERENCE)
    assert [option.name for option in DAEMON + CONNECTOR if f"| `{option.name}` |" not in options] == []
    assert [name for name in COUNTERS if f"| `{name}` |" not in counters] == []
    assert [row.name for row in rows() if f"| `{row.name}` | {row.kind} |" not in metrics] == []
