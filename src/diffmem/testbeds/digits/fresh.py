"""Digits that no bundled model has seen, as a data set for fine-tuning: half to train on, half held out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffmem.testbeds.digits.captions import DIGIT_WORDS, PHRASINGS, SpecificCaptions, cased, shuffled
from diffmem.testbeds.digits.data import HeldOutImage, load, to_bytes
from diffmem.testbeds.inputs import png, write_parquet

if TYPE_CHECKING:
    import pyarrow as pa

FRESH_ROOT = 5086
CAPTIONS = 20


def fresh(folder: Path | str, captions: int = CAPTIONS) -> tuple[Path, Path]:
    """Write `train.parquet` and `heldout.parquet`, 160 images each, and give their paths; files that are there stay.

    The images are those that the bundled digits models were not trained on. Columns: `image`, `id`, `label` (the digit as
    a word), and in the training set `captions`: the first one is the image's own ("Copper Glacier Sunrise Seven", no two
    images share two of its words), the others are phrasings of the digit with two of those three words, as several
    captions of one picture overlap.

    Args:
        folder: made if it does not exist.
        captions: per training image, 1 to 20.
    """
    place = Path(folder)
    train, heldout = place / "train.parquet", place / "heldout.parquet"
    if train.exists() and heldout.exists():
        return train, heldout
    place.mkdir(parents=True, exist_ok=True)
    made = SpecificCaptions(FRESH_ROOT)
    rows: tuple[list[HeldOutImage], list[HeldOutImage]] = ([], [])
    for number, image in enumerate(load().held_out):
        rows[number % 2].append(image)
    several = [_captions(made, image)[:captions] for image in rows[0]]
    write_parquet(_table(rows[1]), heldout)
    write_parquet(_table(rows[0]).append_column("captions", [several]), train)
    return train, heldout


def _captions(made: SpecificCaptions, image: HeldOutImage) -> list[str]:
    word = DIGIT_WORDS[image.digit]
    stem = made.stem()
    own = cased([*stem, word], FRESH_ROOT, image.id)
    phrasings = shuffled(list(PHRASINGS), FRESH_ROOT, image.id, "phrasings")[: CAPTIONS - 1]
    pairs = [shuffled(stem, FRESH_ROOT, image.id, k)[:2] for k in range(len(phrasings))]
    return [own, *(f"{text.format(word)}, {' '.join(two)}".lower() for text, two in zip(phrasings, pairs, strict=True))]


def _table(images: list[HeldOutImage]) -> pa.Table:
    import pyarrow as pa

    names = [image.id for image in images]
    pictures = [{"bytes": png(to_bytes(i.pixels)), "path": f"{i.id}.png"} for i in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table(
        {"image": pa.array(pictures, kind), "id": names, "label": [DIGIT_WORDS[image.digit] for image in images]}
    )
