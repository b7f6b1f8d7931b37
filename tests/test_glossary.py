"""One word for one thing: every option and column stands in the glossary, none has a name that it replaces."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diffmem.cli.app import VERBS, build_app
from diffmem.runs.schemas import SCHEMAS

PAGE = (Path(__file__).parents[1] / "docs" / "glossary.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("| ").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]
OPTIONS_THERE = set(re.findall(r"`--([\w-]+)`", PAGE))
COLUMNS_THERE = set(re.findall(r"`(\w+)`", PAGE))
INSTEAD_OF = {
    word.strip().replace("-", "_")
    for line in PAGE.splitlines()
    if line.startswith("| ") and line.count("|") == 4 and not line.startswith("|---")
    for word in line.split("|")[3].split(",")
    if word.strip() not in ("", "instead of")
}
NEGATIVES = {"no-distilled"}


def options(verb):
    app = build_app(VERBS, verb)[verb]
    apps = [app, *(app[name] for name in app if not name.startswith("-"))]
    return {
        name.removeprefix("--")
        for app in apps
        if app.default_command is not None
        for argument in app.assemble_argument_collection()
        if argument.parse
        for name in argument.names
        if name.startswith("--") and not name.startswith("--empty-")
    } - NEGATIVES  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_in_the_glossary_and_none_is_a_word_that_was_replaced(verb):
    names = options(verb)
    assert names and not names - OPTIONS_THERE, f"put into docs/glossary.md: {sorted(names - OPTIONS_THERE)}"
    assert not {name.replace("-", "_") for name in names} & INSTEAD_OF


def test_every_column_is_in_the_glossary_and_none_is_a_word_that_was_replaced():
    columns = {name for schema in SCHEMAS.values() for name in schema.names}
    there = COLUMNS_THERE | {word for row in ROWS for word in re.findall(r"\w+", row[0])}
    assert not columns - there, f"put into docs/glossary.md: {sorted(columns - there)}"
    assert not columns & INSTEAD_OF and len(INSTEAD_OF) > 8


def test_the_glossary_names_no_option_that_is_gone():
    assert not OPTIONS_THERE - {name for verb in VERBS for name in options(verb)} - {"help"}
