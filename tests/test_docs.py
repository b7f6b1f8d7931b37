"""Every code block of the documentation runs, in order, in an empty folder."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from diffmem.cli.app import main

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        "tutorial.md",
        "models.md",
        "own-network.md",
        "writing-a-score.md",
        "guard.md",
        "training.md",
        "lora.md",
        "matching.md",
        "canaries.md",
        "lab.md",
        "mitigation.md",
        "robustness.md",
        "removing.md",
        "measuring-images.md",
    ],
)
def test_the_page_runs(page, tmp_path, monkeypatch, capsys):
    from diffmem.scores import SCORES

    monkeypatch.chdir(tmp_path)
    before = dict(SCORES._loaded)
    names: dict = {"__name__": "docs"}
    blocks = BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    assert blocks
    try:
        for kind, text in blocks:
            file = re.match(r"# (\w+\.py)\n", text)
            if file is not None:  # what the page says to put into a file
                Path(file[1]).write_text(text, encoding="utf-8")
            if kind == "python":
                exec(compile(text, page, "exec"), names)
                continue
            for line in text.strip().splitlines():
                program, *arguments = shlex.split(line)
                assert program == "diffmem"
                assert (
                    main(
                        [
                            *arguments,
                            *([] if arguments[0] in ("show", "compare", "evaluate", "doctor") else ["--quiet"]),
                        ]
                    )
                    == 0
                ), line + "\n" + capsys.readouterr().err
    finally:
        SCORES._loaded.clear()
        SCORES._loaded.update(before)
    assert any(tmp_path.iterdir()) or page in (
        "writing-a-score.md",
        "models.md",
        "guard.md",
        "training.md",
        "lab.md",
        "removing.md",
    )


def test_the_methods_page_is_made_from_the_registry(monkeypatch):
    from diffmem.report.methods import methods_page
    from diffmem.scores import SCORES
    from diffmem.scores.image import IMAGE_SCORES

    for registry in (SCORES, IMAGE_SCORES):  # without what other tests have added
        monkeypatch.setattr(registry, "_loaded", {})

    assert (DOCS / "methods.md").read_text(encoding="utf-8") == methods_page()


def test_links_between_pages_exist():
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\(([\w./-]+\.md)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_site_is_built_without_warnings_and_asks_no_other_machine_for_anything(tmp_path):
    pytest.importorskip("mkdocs", reason="make docs installs mkdocs")
    pytest.importorskip("mkdocstrings", reason="make docs installs mkdocstrings")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)],
        cwd=DOCS.parent, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        assert not re.findall(
            r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?:https?:)?//", page.read_text(encoding="utf-8")
        )


def test_every_page_is_in_the_navigation():
    text = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert pages == set(re.findall(r"[\w/-]+\.md", text))


def test_the_reference_holds_every_public_name():
    import diffmem as dm

    there = set(re.findall(r"^::: ([\w.]+)$", (DOCS / "reference.md").read_text(encoding="utf-8"), re.MULTILINE))
    things = {name: getattr(dm, name) for name in (*dm.__all__, *dm._VERBS)}
    places = {name: f"{thing.__module__}.{thing.__qualname__}" for name, thing in things.items()}
    places["guard"] = "diffmem.serving.guard.guard"
    assert not {name for name, place in places.items() if place not in there}
    for place in there:
        module, _, name = place.rpartition(".")
        assert hasattr(importlib.import_module(module), name), place
