"""What a report leaves out: pixels of images, words of prompts. What is left out is not in the file at all."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image
from pydantic import JsonValue

from diffmem.report.measures.shape import MeasuredImage, MeasuresDigest
from diffmem.report.shape import Digest
from diffmem.report.shapes.base import Text

Redaction = Literal["none", "blur", "hash"]
SIDE = 256
"""Longest side of a picture in the report, in pixels."""
BLURRED = 6
"""Longest side of a blurred picture; what is embedded has no more pixels than that."""
HIDDEN = "hidden with the prompts"
SMALL = 96
"""Pictures up to this side are enlarged without smoothing, so that their pixels can be compared."""


@dataclass(frozen=True)
class Embedded:
    """A picture inside the file: data URI, size in pixels, and how it is enlarged (`pixels`, `smooth` or `blurred`)."""

    uri: str
    width: int
    height: int
    look: Literal["pixels", "smooth", "blurred"]


@dataclass(frozen=True)
class View:
    """One picture of a page: embedded, or None with the reason."""

    picture: Embedded | None
    reason: str


def embed(image: Image.Image, redact: Redaction, side: int = SIDE) -> Embedded | None:
    """The picture as the report may hold it: whole up to `side` pixels, a few averaged pixels, or None.

    A blurred picture keeps at most BLURRED pixels a side and at most a quarter of its own: no sharpening brings back
    what was averaged away.
    """
    if redact == "hash":
        return None
    if redact == "blur":
        few = max(1, min(BLURRED, max(image.size) // 4))
        return _pack(_fit(image, few, Image.Resampling.BOX), "blurred")
    if max(image.size) <= SMALL:
        return _pack(image, "pixels")
    return _pack(_fit(image, side, Image.Resampling.LANCZOS), "smooth")


def embed_file(file: Path, redact: Redaction) -> Embedded | None:
    """The picture in a file as a page may hold it; None if there is no such file."""
    if not file.is_file():
        return None
    with Image.open(file) as picture:
        return embed(picture.convert("RGB"), redact)


def _fit(image: Image.Image, side: int, how: Image.Resampling) -> Image.Image:
    scale = min(1.0, side / max(image.size))
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), how)


def _pack(image: Image.Image, look: Literal["pixels", "smooth", "blurred"]) -> Embedded:
    plain = Image.new(image.mode, image.size)  # without text chunks, profiles or EXIF of the source
    plain.paste(image)
    buffer = io.BytesIO()
    if look == "smooth":
        plain.convert("RGB").save(buffer, format="WEBP", quality=82)
        kind = "webp"
    else:
        plain.save(buffer, format="PNG", optimize=True)
        kind = "png"
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Embedded(f"data:image/{kind};base64,{data}", image.width, image.height, look)


def _without_words(plan: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """The plan without a negative prompt, which is a prompt too."""
    return {
        key: _without_words(value)
        if isinstance(value, dict)
        else HIDDEN
        if key == "negative_prompt" and value is not None
        else value
        for key, value in plan.items()
    }


def _without_captions(measures: MeasuresDigest | None) -> MeasuresDigest | None:
    """The measures without captions, which are prompts too, and without texts that may repeat one."""
    if measures is None:
        return None

    def bare(images: tuple[MeasuredImage, ...]) -> tuple[MeasuredImage, ...]:
        return tuple(image.model_copy(update={"caption": None, "fitted": None}) for image in images)

    scores = tuple(
        score.model_copy(
            update={
                "top": bare(score.top),
                "bottom": bare(score.bottom),
                "reason": HIDDEN if score.reason else None,
            }
        )
        for score in measures.scores
    )
    return measures.model_copy(update={"scores": scores})


def hide_prompts(digest: Digest) -> Digest:
    """The digest with every prompt replaced by its hash, and without texts that may repeat one.

    Hashes of short or known prompts can be guessed by trying; ids of prompts and training images stay.
    """

    def hashed(text: Text) -> Text:
        words = f"sha256:{text.sha256}"
        return text.model_copy(update={"text": words, "length": len(words)})

    known = {row.prompt_id: row.prompt.sha256 for row in digest.table.rows}
    galleries = tuple(
        gallery.model_copy(
            update={
                "pairs": tuple(
                    pair.model_copy(update={"prompt": hashed(pair.prompt), "command": None}) for pair in gallery.pairs
                )
            }
        )
        for gallery in digest.galleries
    )
    scores = tuple(
        score.model_copy(
            update={
                "reason": HIDDEN if score.reason else None,
                "top": tuple(
                    top.model_copy(
                        update={"prompt": f"sha256:{known[top.prompt_id]}" if top.prompt_id in known else None}
                    )
                    for top in score.top
                ),
            }
        )
        for score in digest.scores
    )
    rows = tuple(
        row.model_copy(update={"prompt": hashed(row.prompt), "problem": HIDDEN if row.problem else None})
        for row in digest.table.rows
    )
    checks = tuple(
        check.model_copy(update={"found": check.found.partition(": ")[0]})
        if check.check.startswith("score ")
        else check
        for check in digest.checks
    )
    # A command to run again holds the prompts that were typed; the others hold paths and numbers.
    steps = tuple(
        step.model_copy(
            update={"commands": tuple("diffmem audit …" if c.startswith("diffmem audit") else c for c in step.commands)}
        )
        for step in digest.verdict.steps
    )
    return digest.model_copy(
        update={
            "verdict": digest.verdict.model_copy(update={"steps": steps}), "galleries": galleries,
            "scores": scores, "checks": checks,
            "table": digest.table.model_copy(update={"rows": rows}), "measures": _without_captions(digest.measures),
            "plan": _without_words(digest.plan),
            "commands": tuple((*command[:2], "…") for command in digest.commands),
        }
    )  # fmt: skip
