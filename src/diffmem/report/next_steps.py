"""What to do after a verdict, as commands that can be pasted: with the paths of the run that it is about."""

from __future__ import annotations

import shlex
from pathlib import Path

from diffmem.report.shapes.copies import CopiesDigest
from diffmem.report.shapes.verdict import Step, Verdict
from diffmem.runs.manifest import Manifest

VALUED = {"--train", "--heldout", "--prompts", "--lora", "--steps", "--guidance", "--descriptor"}

_FAILED, _UNFINISHED = "the check of the model failed", "the run is not finished"
"""What the sentence of a verdict says where its counts are worth nothing."""


class Typed:
    """What the last audit of a run was given; placeholders in capitals where it was called from Python.

    Attributes:
        model: as typed.
        options: the values of `VALUED` options, by name.
        line: the whole command, None where there is none.
    """

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self.model, self.line = "MODEL", None
        self.options: dict[str, str] = {}
        for command in reversed(manifest.commands):
            words = list(command[1:])
            if not words or words[0] not in ("audit", "generate", "demo"):
                continue
            if words[0] == "demo":
                self._of_demo(words, folder)
                return
            if len(words) > 1:
                self.model = words[1]
            for number, word in enumerate(words):
                name, equals, value = word.partition("=")
                if name in VALUED:
                    self.options[name] = value if equals else words[number + 1] if number + 1 < len(words) else ""
            self.line = shlex.join(["diffmem", *(["audit", *words[1:]] if words[0] == "generate" else words)])
            return

    def _of_demo(self, words: list[str], folder: Path) -> None:
        """A demo of a bundled model wrote its images and prompts beside the run."""
        inputs = folder.with_name(folder.name + "-inputs")
        self.model = "testbed:digits" if {"digits", "--testbed=digits"} & {*words} else "testbed:photos"
        names = {"--train": "train.parquet", "--heldout": "heldout.parquet", "--prompts": "prompts.jsonl"}
        self.options = {option: str(inputs / name) for option, name in names.items()}

    def value(self, option: str) -> str:
        """The value of an option, or its name in capitals."""
        return self.options.get(option) or option.removeprefix("--").upper()

    def without(self, option: str) -> str:
        """The whole command without an option and its value."""
        words = shlex.split(self.line or "")
        kept = [
            word for word, before in zip(words, ["", *words], strict=False)
            if option not in (word, before) and not word.startswith(f"{option}=")
        ]  # fmt: skip
        return shlex.join(kept)

    def given(self, *options: str) -> list[str]:
        """These options with their values, those that were given."""
        return [word for name in options if self.options.get(name) for word in (name, self.options[name])]


def next_steps(verdict: Verdict, folder: Path, manifest: Manifest, copies: CopiesDigest | None) -> tuple[Step, ...]:
    """The steps that follow from a verdict.

    Args:
        verdict: its state decides.
        folder: of the run.
        manifest: of the run.
        copies: what was searched; None: nothing was.
    """
    typed = Typed(manifest, folder)
    make = {"reproduces": _reproduces, "no-excess": _no_excess, "unknown": _unknown}[verdict.state]
    return _look(verdict, folder) + make(verdict, folder, typed, copies)


def _look(verdict: Verdict, folder: Path) -> tuple[Step, ...]:
    """To look at the pairs; where pairs are called and none is confirmed, people who label them can change the verdict."""
    worthless = any(text in verdict.sentence for text in (_FAILED, _UNFINISHED))
    show = _line("show", folder, "--top", "20")
    if verdict.called and not verdict.confirmed and not worthless:
        return (
            Step(
                what="Look at the pairs and label them: the matcher called some, and none is confirmed.",
                commands=(show, _line("review", folder, "--reviewer", "NAME")),
            ),
        )
    return (Step(what="Look at the pairs, side by side.", commands=(show,)),) if verdict.state == "reproduces" else ()


def _line(*words: str | Path) -> str:
    return shlex.join(["diffmem", *(str(word) for word in words)])


def _reproduces(verdict: Verdict, folder: Path, typed: Typed, copies: CopiesDigest | None) -> tuple[Step, ...]:
    base = folder.with_name
    train = typed.value("--train")
    measured, curated = base(folder.name + "-measured"), base(folder.name + "-curated")
    images = "this training image" if copies is None or copies.training_images_copied == 1 else (
        f"these {copies.training_images_copied:,} training images"
    )  # fmt: skip
    return (
        Step(
            what=f"Curate: drop or change {images} and their near-duplicates, retrain on the result, audit again.",
            commands=(
                _line("measure", typed.model, "--images", train, "--trained", "--score", "vgr", "--out", measured,
                      *typed.given("--heldout")),
                _line("curate", train, "--run", measured, "--out", curated, "--write"),
            ),
        ),
        Step(
            what="Or keep the model and mitigate: see what each method costs on these prompts.",
            commands=(
                _line("mitigate", typed.model, "--prompts", typed.value("--prompts"), "--train", train, "--method", "all",
                      "--out", base(folder.name + "-mitigated"), *typed.given("--heldout", "--steps", "--guidance")),
            ),
        ),
        Step(
            what="Or ship it behind a guard (docs/guard.md), at a threshold calibrated on this model.",
            commands=(
                _line("calibrate", typed.model, "--regime", "generation", "--out", base(folder.name + "-guard.json"),
                      *typed.given("--steps", "--guidance")),
            ),
        ),
    )  # fmt: skip


def _no_excess(verdict: Verdict, folder: Path, typed: Typed, copies: CopiesDigest | None) -> tuple[Step, ...]:
    steps = [
        Step(
            what="Hold later versions of the model to this verdict.",
            commands=(
                _line("show", folder, "--fail-if", "verdict==reproduces", "--fail-if", "verdict==unknown"),
            ),
        )
    ]  # fmt: skip
    if verdict.bound is not None:
        half = max(0.001, float(f"{verdict.bound / 2:.1g}"))
        words = ["plan", "--detect", f"{100 * half:g}%"]
        if copies is not None and copies.threshold.n_reference:
            words += ["--heldout", str(copies.threshold.n_reference)]
            k = copies.threshold.images_per_prompt
            words += ["--looks", f"{k},{2 * k},{4 * k}"]
        steps.append(
            Step(
                what="To find a smaller share, plan an audit with another --seed in a new folder, whose looks share the error of "
                "one. More seeds in this run cannot make its verdict `reproduces` by a rate: whoever adds seeds until something "
                "shows finds something by chance.",
                commands=(_line(*words),),
            )
        )
    return tuple(steps)


def _unknown(verdict: Verdict, folder: Path, typed: Typed, copies: CopiesDigest | None) -> tuple[Step, ...]:
    if _FAILED in verdict.sentence:
        return (Step(what=verdict.needs or "", commands=(_line("doctor", typed.model),)),)
    if typed.line is None:
        return (Step(what=verdict.needs or ""),)
    more = ""
    if copies is None and "--train" not in typed.options:
        more = " --train TRAIN"
    elif copies is not None and not copies.calibrated and "--heldout" not in typed.options:
        more = " --heldout HELDOUT"
    needs = verdict.needs or ""
    line = typed.without("--limit") if "more distinct prompt" in needs else typed.line
    return (Step(what=needs, commands=(line + more,)),)
