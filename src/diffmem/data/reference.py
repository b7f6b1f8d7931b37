"""The reference prompts that ship with the package: captions in many styles that no model was trained to reproduce."""

from __future__ import annotations

from importlib import resources

from diffmem.data.prompts import PromptList, load_prompts

REFERENCE = "diffmem-reference-1"


def reference_prompts() -> PromptList:
    """The default reference list for calibrating thresholds: several hundred captions written for this project.

    Web titles, alt texts, product titles, plain descriptions, questions, artistic prompts, labels, notices, captions of
    archives and laboratories, and other languages; near-duplicates of each other are left out. It stands for prompts
    whose image is not memorized; the rate of a threshold holds for prompts that are like it. Calibrate on captions of
    your own domain where you have some.

    Returns:
        The list, unlabelled, with the source `diffmem-reference-1`; the number is raised whenever a caption changes.
    """
    text = resources.files("diffmem.data").joinpath("reference_captions.txt").read_text(encoding="utf-8")
    prompts = load_prompts(text.splitlines())
    return PromptList(prompts.prompts, REFERENCE, prompts.column, prompts.id_column)
