"""Models whose images are known, and what the tests of faults share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffmem.cli.app import main
from diffmem.models.target import Target


def fault(number: int) -> pytest.MarkDecorator:
    """A test of what is wrong today, with the right value; whoever mends it takes the mark away."""
    return pytest.mark.xfail(strict=True, reason=f"fault {number} of the list 'Wrong today'")


def noise_picture(seed: int, size: int = 16) -> Image.Image:
    """Independent grey pixels: no two pictures are alike."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size)).astype(np.uint8))


def answering(picture: Callable[[str, int], Image.Image], name: str = "planted") -> Target:
    """A model that only generates: `picture(prompt, seed)` for each image asked for."""

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return [picture(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]

    return Target.from_callable(generate=generate, name=name)


def save(folder: Path, pictures: dict[str, Image.Image]) -> Path:
    """Pictures as PNG files."""
    folder.mkdir(parents=True)
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def printed_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """What a command prints with --json; it must succeed."""
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)
