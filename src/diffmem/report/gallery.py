"""Pairs of generated and nearest training image as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

CELL = 96
GAP = 10
TEXT = 34
HEAD = 30


@dataclass(frozen=True)
class Pair:
    """A generated image, its nearest training image (None if it is not to be had), and what to write below."""

    generated: Image.Image
    training: Image.Image | None
    title: str
    detail: str


def draw_pairs(pairs: Sequence[Pair], heading: str, columns: int = 5) -> Image.Image:
    """A sheet of pairs: generated on the left, training image on the right of each, title and detail below.

    Small images are enlarged without smoothing, so that their pixels can be compared.
    """
    width = 2 * CELL + 4
    rows = max(1, -(-len(pairs) // columns))
    sheet = Image.new("RGB", (GAP + columns * (width + GAP), HEAD + rows * (CELL + TEXT + GAP) + GAP), (250, 250, 250))
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 8), heading, fill=(20, 20, 20), font=ImageFont.load_default(14))
    small = ImageFont.load_default(11)
    for i, pair in enumerate(pairs):
        left = GAP + (i % columns) * (width + GAP)
        top = HEAD + (i // columns) * (CELL + TEXT + GAP)
        sheet.paste(_fit(pair.generated), (left, top))
        if pair.training is not None:
            sheet.paste(_fit(pair.training), (left + CELL + 4, top))
        else:
            draw.rectangle((left + CELL + 4, top, left + 2 * CELL + 3, top + CELL - 1), fill=(225, 225, 225))
        draw.text((left, top + CELL + 4), _shorten(pair.title, small, width), fill=(20, 20, 20), font=small)
        draw.text((left, top + CELL + 18), _shorten(pair.detail, small, width), fill=(90, 90, 90), font=small)
    return sheet


def _fit(image: Image.Image) -> Image.Image:
    scale = CELL / max(image.size)
    how = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resized = image.convert("RGB").resize(size, how)
    cell = Image.new("RGB", (CELL, CELL), (225, 225, 225))
    cell.paste(resized, ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    return cell


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    # The default font knows few scripts; what it cannot draw is shown as a box rather than left out.
    clean = " ".join(text.split())
    if font.getlength(clean) <= width:
        return clean
    while clean and font.getlength(clean + "…") > width:
        clean = clean[:-1]
    return clean + "…"
