"""What commands say of themselves."""

import argparse

from kvtier.usage import Parser, examples, paragraphs_of


def test_the_epilog_keeps_its_examples_line_by_line_and_fills_its_paragraphs():
    parser = Parser(prog="x", epilog=examples("x one", "x " + "long " * 30 + "end", exits="0 good; " + "1 bad " * 30))
    shown = parser.format_help()
    assert "Examples:\n  x one\n  x long long" in shown
    assert next(line for line in shown.splitlines() if line.startswith("  x long")).endswith(" end")
    filled = shown[shown.index("Exit status:") :].splitlines()
    assert len(filled) > 2 and all(len(line) <= 80 for line in filled)


def test_one_example_is_called_so():
    assert examples("x", exits="0 good") == "Example:\n  x\n\nExit status: 0 good."


def test_a_paragraph_ends_at_an_empty_line_or_at_one_that_begins_with_a_space():
    assert paragraphs_of("a\nb\n\nc\n  d") == [("a b", False), ("", True), ("c", False), ("  d", True)]


def test_commands_of_such_a_parser_are_such_parsers():
    parser = Parser(prog="x")
    command = parser.add_subparsers().add_parser("y", epilog=examples("x y", exits="0 good"))
    assert isinstance(command, Parser) and isinstance(command, argparse.ArgumentParser)
    assert "Example:\n  x y\n\nExit status: 0 good." in command.format_help()
