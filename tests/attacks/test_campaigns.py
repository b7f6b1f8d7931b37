"""Each campaign of benchmarks/attacks on a few trials: it finds nothing, and it finds what is planted."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "attacks"


@pytest.fixture
def campaign(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    names = ("common", "flips", "options", "kills")
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_flipped_bytes_are_computed_again_or_named(campaign):
    result = campaign("flips").run(flips=12, seed=1)
    assert result["failed"] == [] and result["trials"] == 12


@pytest.mark.slow
def test_what_reads_no_checksums_is_caught_by_the_campaign(campaign, monkeypatch):
    from diffmem.runs import sealed, store

    flips = campaign("flips")
    monkeypatch.setattr(store, "_verify", lambda path: None)
    monkeypatch.setattr(sealed, "_checksum", lambda content: "same")
    monkeypatch.setattr(flips, "VERBS", ("generate", "measure"))
    monkeypatch.setattr(flips, "damage", change_a_number)
    assert flips.run(flips=20, seed=0)["failed"]


def change_a_number(file, chance):
    """Damage that only a checksum of the content sees."""
    import pyarrow.parquet as pq

    if file.suffix == ".parquet":
        table = pq.read_table(file)
        pq.write_table(table.slice(0, table.num_rows - 1), file)
    return "a row less"


@pytest.mark.slow
def test_odd_options_end_in_a_sentence(campaign):
    result = campaign("options").run(limit=40, seed=3)
    assert result["failed"] == [] and result["trials"] == 40
    assert result["of"] > 5000 and result["outcomes"]["refused, exit 2"] > 20


@pytest.mark.slow
def test_killed_commands_lose_nothing(campaign):
    result = campaign("kills").run(kills=6, seed=0, only=("score", "generate", "canaries make"))
    assert result["failed"] == [] and result["trials"] >= 6
