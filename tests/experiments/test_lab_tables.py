"""The paper's tables from a lab's rows."""

from diffmem.experiments.lab.tables import paper_tables, stages


def row(duplication, captions, mitigation, seed, above, status="ok"):
    return {
        "duplication": duplication, "captions": captions, "mitigation": mitigation, "seed": seed, "status": status,
        "similarity_mean": 0.5, "similarity_p95": 0.9, "share_above": above, "share_copied": 0.1, "frechet": None,
        "alignment": None,
    }  # fmt: skip


def test_cells_stand_in_the_table_of_what_they_vary():
    rows = [
        row("nodup", "instance", "none", 0, 0.1), row("nodup", "instance", "none", 1, 0.3),
        row("dup_image", "random", "none", 0, 0.4), row("nodup", "instance", "train:MC", 0, 0.05),
        row("nodup", "instance", "random-tokens:count=2", 0, 0.02), row("nodup", "class", "none", 0, 0.9, "error"),
        row("nodup", "instance", "train:RT + embedding-noise:strength=0.1", 0, 0.01),
    ]  # fmt: skip
    tables = paper_tables(rows)
    first = tables["duplication and captions"]
    assert [(line["duplication"], line["captions"], line["seeds"]) for line in first] == [
        ("nodup", "instance", 2), ("dup_image", "random", 1)
    ]  # fmt: skip
    assert abs(first[0]["share above the cut"] - 0.2) < 1e-12 and first[0]["Fréchet distance"] is None
    names = {title: [line["mitigation"] for line in tables[title]] for title in list(tables)[1:]}
    both = "train:RT + embedding-noise:strength=0.1"
    assert names == {
        "mitigation at training": ["none", "train:MC", both],
        "mitigation at inference": ["none", "random-tokens:count=2", both],
    }
    assert stages("none") == set()
    assert list(paper_tables(rows[:1])) == ["duplication and captions"]
