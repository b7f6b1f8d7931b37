"""One word for one thing: every option and column stands in the glossary, none has a name that it replaces."""

from __future__ import annotations

import inspect
import re
from dataclasses import is_dataclass
from pathlib import Path

import pytest
from pydantic import BaseModel

import diffmem as dm
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


def public():
    """Every function and method that `dir(dm)` and the verbs give, and the classes of runs and settings."""
    given = {name: getattr(dm, name) for name in (*dm._DOOR, *dm._VERBS)}
    given |= {name: getattr(dm.experiments, name) for name in ("Generation", "Matching", "Run")}
    for name, thing in given.items():
        if inspect.isclass(thing):
            methods = {m: getattr(thing, m) for m in vars(thing) if not m.startswith("_")}
            yield from ((f"{name}.{m}", f) for m, f in methods.items() if inspect.isfunction(f) or inspect.ismethod(f))
            if issubclass(thing, BaseModel) or is_dataclass(thing):
                yield name, thing
        elif callable(thing):
            yield name, thing


def arguments():
    """Name of an argument of the public functions -> where it stands and its annotation."""
    found = {}
    for name, function in public():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name not in ("self", "cls") and not parameter.name.startswith("_"):
                found.setdefault(parameter.name, []).append((name, str(parameter.annotation)))
    return found


def test_every_argument_of_python_is_in_the_glossary_and_none_is_a_word_that_was_replaced():
    names = arguments()
    there = {name.replace("-", "_") for name in OPTIONS_THERE} | COLUMNS_THERE | {row[0] for row in ROWS}
    there |= {word for row in ROWS for word in re.findall(r"[a-z]\w+", row[0])}
    lacking = {name: places[0][0] for name, places in names.items() if name not in there}
    assert len(names) > 60 and not lacking, f"put into docs/glossary.md: {lacking}"
    assert not names.keys() & INSTEAD_OF


def test_images_is_a_set_and_draws_are_noises():
    """A number of images is `images_per_prompt`, `images_per_cell` or `samples`."""
    names = arguments()
    assert not [where for where, kind in names["images"] if "int" in kind.split("[")[0]]
    assert {where for where, _ in names["draws"]} <= {
        "audit",
        "score",
        "calibrate",
        "localize",
        "guard.calibrate",
        "Target.generate",
    }
