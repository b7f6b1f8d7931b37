"""Every code block of the documentation runs, in order, in an empty folder."""

import re
import shlex
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
        "writing-a-score.md",
        "guard.md",
        "training.md",
        "lora.md",
        "matching.md",
        "canaries.md",
        "lab.md",
        "mitigation.md",
        "robustness.md",
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
    assert any(tmp_path.iterdir()) or page in ("writing-a-score.md", "models.md", "guard.md", "training.md", "lab.md")


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
