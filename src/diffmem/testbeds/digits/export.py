"""Handwritten digits as a dataset folder with several captions per picture, for training on what nobody has to download."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from diffmem.atomic import write_atomic
from diffmem.errors import UsageError
from diffmem.testbeds.digits.captions import DIGIT_WORDS, PHRASINGS, SpecificCaptions, cased, shuffled
from diffmem.testbeds.digits.data import ISOLATION, SIZE, load, to_bytes, to_signed
from diffmem.testbeds.inputs import png

MOST_CAPTIONS = 1 + len(PHRASINGS)


def export(
    folder: Path | str, count: int = 200, captions_per_image: int = 5, seed: int = 0, unseen: bool = False,
    start: int = 0,
) -> Path:  # fmt: skip
    """Write distinct digits as 8x8 grey PNGs with `metadata.jsonl`, and give the folder.

    The pictures are scikit-learn's digits that are no nearer than `ISOLATION` to any other, so that a copy of one can be
    told from its neighbours. Columns: `file_name`, `label` (the digit), `captions`: the first names the picture alone
    ("Copper Glacier Sunrise Seven", no two pictures share two of its words); the others are phrasings of the digit with
    two of those words. Every word is in the vocabulary of the testbed's tokenizer. Equal arguments write equal bytes.

    Args:
        folder: made if it does not exist; must hold no other pictures.
        count: pictures, taken evenly from the ten digits as far as there are enough of each.
        captions_per_image: distinct captions of each picture, 1 to `MOST_CAPTIONS`.
        seed: root seed of the choice and of the captions.
        unseen: only pictures that no bundled model was trained on.
        start: pictures of the seed's order to leave out before: a second folder without those of a first.

    Raises:
        UsageError: more pictures or captions than there are, or a folder with other pictures.
    """
    place = Path(folder)
    if not 1 <= captions_per_image <= MOST_CAPTIONS:
        raise UsageError(f"{captions_per_image} captions per image; expected 1 to {MOST_CAPTIONS}.")
    images, digits = isolated_digits(unseen)
    chosen = _chosen(digits, start, count, seed)
    names = [f"digit-{number:04d}.png" for number in range(start, start + count)]
    strange = sorted(path.name for path in place.glob("*.png") if path.name not in names)
    if strange:
        raise UsageError(f"'{place}' holds other pictures ({strange[0]}, ...): give a new folder.")
    made = SpecificCaptions(seed)
    for _ in range(start):
        made.stem()
    rows = []
    for name, at in zip(names, chosen, strict=True):
        write_atomic(place / name, png(to_bytes(images[at])))
        captions = _captions(made, int(digits[at]), name, seed)[:captions_per_image]
        rows.append({"file_name": name, "captions": captions, "label": str(digits[at])})
    write_atomic(place / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    return place


def isolated_digits(unseen: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [N, 8, 8] in 0..16 and digits [N] of all pictures that are at least `ISOLATION` from any other.

    Args:
        unseen: only those that no bundled model was trained on.
    """
    from sklearn.datasets import load_digits

    flat, labels = load_digits(return_X_y=True)
    signed = to_signed(flat).astype(np.float64)
    squares = (signed**2).sum(1)
    distance = np.sqrt(np.maximum(squares[:, None] + squares - 2 * signed @ signed.T, 0) / signed.shape[1])
    np.fill_diagonal(distance, np.inf)
    kept = distance.min(1) >= ISOLATION
    if unseen:
        held_out = {image.pixels.tobytes() for image in load().held_out}
        kept &= np.array([pixels.astype(np.uint8).tobytes() in held_out for pixels in flat])
    return flat[kept].reshape(-1, SIZE, SIZE).astype(np.uint8), labels[kept]


def _chosen(digits: np.ndarray, start: int, count: int, seed: int) -> list[int]:
    """Positions of the pictures, one of each digit in turn, in an order named by the seed."""
    if not (start >= 0 and 1 <= count <= len(digits) - start):
        raise UsageError(
            f"{count} pictures; there are {len(digits)} that are isolated enough, ask for 1 to {len(digits)}."
        )
    pools = [shuffled(np.flatnonzero(digits == digit).tolist(), seed, "export", digit) for digit in range(10)]
    turns = [pool[turn] for turn in range(max(map(len, pools))) for pool in pools if turn < len(pool)]
    return turns[start : start + count]


def _captions(made: SpecificCaptions, digit: int, name: str, seed: int) -> list[str]:
    """The picture's own caption, then phrasings of its digit with two of the own words each."""
    word = DIGIT_WORDS[digit]
    stem = made.stem()
    others = [
        f"{text.format(word)}, {' '.join(shuffled(stem, seed, name, turn)[:2])}".lower()
        for turn, text in enumerate(shuffled(PHRASINGS, seed, name, "phrasings"))
    ]
    return [cased([*stem, word], seed, name), *others]
