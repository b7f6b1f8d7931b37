"""The pictures of a run: generated images from the store, training images from where they were indexed."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from diffmem.copies.index import CopyIndex
from diffmem.data.png import decode_png
from diffmem.errors import DataError
from diffmem.report.digest import build_digest
from diffmem.report.gallery import Pair, draw_pairs
from diffmem.report.prose import visible
from diffmem.report.shape import Digest
from diffmem.report.shapes.copies import Gallery, PairDigest
from diffmem.report.stored import read_pngs
from diffmem.report.verdict import STATISTICS
from diffmem.runs.store import RunStore

MOST = 25
HEADINGS = {
    "copies": "Called a copy",
    "false": "Called a copy, but measured as not reproduced",
    "missed": "Measured as reproduced, but not called a copy",
}


class Pictures:
    """Both pictures of every pair of a digest, opened when they are asked for.

    Args:
        folder: the run directory.
        digest: its digest.
    """

    def __init__(self, folder: Path, digest: Digest) -> None:
        self._index: CopyIndex | None = None
        self._problem = "no training set was searched"
        if digest.copies is not None:
            try:
                self._index = CopyIndex.load(folder / "index" / digest.copies.descriptor)
            except DataError:
                self._problem = "its index is not in the run directory"
        keys = {bytes.fromhex(pair.image_key) for gallery in digest.galleries for pair in gallery.pairs}
        self._png = read_pngs(RunStore(folder), keys)

    def generated(self, pair: PairDigest) -> Image.Image:
        """The generated image; DataError if its row is damaged or gone."""
        png = self._png.get(bytes.fromhex(pair.image_key))
        if png is None:
            raise DataError("An image of this run is missing; run the same command again.")
        return decode_png(png)

    def training(self, pair: PairDigest) -> tuple[Image.Image | None, str | None]:
        """The training image, or None and why it is not to be had: in words that name no path."""
        if self._index is None:
            return None, self._problem
        try:
            item = self._index.image(pair.train_id)
        except DataError:
            return None, "it is not in the index"
        return item.image, None if item.problem is None else item.problem.partition(":")[0]


def write_pictures(folder: Path) -> list[Path]:
    """Write sheets of pairs into `pictures/` of a run: copies found, and with labels the false and the missed ones.

    Each training image is shown once per sheet, in its most similar pair.
    """
    digest = build_digest(folder, methods=False)
    if digest.copies is None:
        return []
    galleries = {gallery.section: gallery for gallery in digest.galleries}
    pictures = Pictures(folder, digest)
    kind = STATISTICS[digest.copies.threshold.statistic]
    written = []
    for name, heading in HEADINGS.items():
        path = folder / "pictures" / f"{name}.png"
        gallery = galleries.get(name)  # type: ignore[call-overload]
        if gallery is None:
            path.unlink(missing_ok=True)
            continue
        path.parent.mkdir(exist_ok=True)
        shown = gallery.pairs[:MOST]
        text = f"{heading}: {gallery.prompts} prompts, {len(shown)} shown"
        text += f" (left: generated, right: nearest training image, its id and {kind})"
        draw_pairs(_sheet(gallery, pictures), text).save(path)
        written.append(path)
    return written


def _sheet(gallery: Gallery, pictures: Pictures) -> list[Pair]:
    drawn = []
    for pair in gallery.pairs[:MOST]:
        detail = f"{pair.train_id}  {pair.value:.3f}" + (f"  x{pair.group_size}" if pair.group_size > 1 else "")
        detail += "  (background)" if pair.background else ""
        title = visible(pair.prompt.text)
        drawn.append(Pair(pictures.generated(pair), pictures.training(pair)[0], title, detail))
    return drawn
