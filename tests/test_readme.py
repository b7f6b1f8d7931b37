"""The README's table of methods is the registry's, and its commands and names exist."""

import re
import shlex
from pathlib import Path

import pytest

import diffmem
from diffmem.cli.app import VERBS, build_app
from diffmem.report.methods import all_methods, markdown_table

README = Path(__file__).parents[1] / "README.md"


def test_the_table_of_methods_is_current():
    text = README.read_text(encoding="utf-8")
    table = text.partition("`diffmem methods --markdown` -->")[2].partition("<!-- end of methods")[0].strip()
    assert table == markdown_table(all_methods())


def commands():
    """Every `diffmem ...` of the README, in code blocks and in tables."""
    text = README.read_text(encoding="utf-8")
    blocks = re.findall(r"^(diffmem .*)$", text, re.MULTILINE)
    return [*dict.fromkeys(blocks + re.findall(r"`(diffmem [a-z].*?)`", text))]


@pytest.mark.parametrize("line", commands())
def test_its_commands_are_understood(line):
    _, *tokens = shlex.split(line)
    build_app(VERBS).parse_args(tokens, print_error=False, exit_on_error=False)


def test_its_public_names_exist():
    names = set(re.findall(r"`?\bdm\.(\w+)", README.read_text(encoding="utf-8")))
    assert len(names) > 10 and names <= {*diffmem.__all__, *diffmem._VERBS}
