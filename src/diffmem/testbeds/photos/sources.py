"""Where the photos come from: pictures in the wheels of scikit-image and scikit-learn, each split into two regions.

Training crops come from one region of a picture, held-out crops from a strip at its edge; they share no pixel. The
faces of scikit-image's `lfw_subset` are whole images and are split by number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

SIZE = 32
FACES = 100

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int]  # left, top, side, in pixels of the source
Region = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Source:
    """One picture of a kind, what of it is held out, and which crops are worth planting.

    Attributes:
        kind: what its crops show; the checkable attribute.
        grey: the picture has no colour of its own: every crop gets a tint, which its caption names.
        trained: left, top, right, bottom of the region that training crops come from.
        held_out: left, top, right, bottom of the strip that held-out crops come from.
        sides: least and largest side of a random crop.
        famous: crops chosen by eye: the whole motif first, a detail second.
    """

    kind: str
    grey: bool
    trained: Region
    held_out: Region
    sides: tuple[int, int]
    famous: tuple[Box, Box]


# fmt: off
SOURCES: tuple[Source, ...] = (
    Source("astronaut", False, (0, 0, 402, 512), (402, 0, 512, 512), (36, 80), ((62, 0, 340), (150, 20, 150))),
    Source("cat", False, (98, 0, 451, 300), (0, 0, 98, 300), (32, 60), ((100, 0, 300), (122, 72, 90))),
    Source("coffee", False, (0, 0, 512, 400), (512, 0, 600, 400), (40, 84), ((72, 0, 400), (170, 5, 230))),
    Source("rocket", False, (0, 0, 530, 427), (530, 0, 640, 427), (48, 100), ((100, 0, 427), (255, 100, 140))),
    Source("motorcycle", False, (0, 0, 612, 500), (612, 0, 741, 500), (44, 90), ((112, 0, 500), (350, 225, 135))),
    Source("temple", False, (0, 0, 470, 427), (470, 0, 640, 427), (40, 84), ((20, 10, 410), (90, 20, 220))),
    Source("flower", False, (0, 0, 640, 364), (0, 364, 640, 427), (40, 84), ((148, 40, 320), (250, 160, 110))),
    Source("galaxy", False, (0, 0, 860, 872), (860, 0, 1000, 872), (44, 100), ((390, 50, 130), (700, 460, 130))),
    Source("retina", False, (0, 0, 1411, 1180), (0, 1180, 1411, 1411), (90, 200), ((120, 20, 1160), (110, 560, 280))),
    Source("tissue", False, (0, 0, 400, 512), (400, 0, 512, 512), (40, 84), ((0, 0, 396), (200, 250, 145))),
    Source("photographer", True, (0, 0, 402, 512), (402, 0, 512, 512), (40, 84), ((40, 40, 360), (140, 55, 130))),
    Source("coins", True, (0, 0, 308, 303), (308, 0, 384, 303), (34, 60), ((0, 0, 300), (230, 100, 75))),
    Source("moon", True, (0, 0, 512, 402), (0, 402, 512, 512), (40, 90), ((100, 0, 400), (80, 40, 90))),
    Source("brick", True, (0, 0, 402, 512), (402, 0, 512, 512), (44, 90), ((0, 100, 300), (150, 0, 130))),
    Source("gravel", True, (0, 0, 402, 512), (402, 0, 512, 512), (36, 70), ((0, 0, 160), (200, 200, 90))),
    Source("grass", True, (0, 0, 402, 512), (402, 0, 512, 512), (36, 70), ((0, 0, 160), (200, 200, 90))),
    Source("page", True, (0, 0, 304, 191), (304, 0, 384, 191), (32, 54), ((0, 0, 180), (100, 0, 60))),
)
# fmt: on
KINDS: tuple[str, ...] = (*(source.kind for source in SOURCES), "face")
GREY_KINDS = frozenset({*(source.kind for source in SOURCES if source.grey), "face"})

TINTS: dict[str, tuple[float, float, float]] = {
    "white": (1.0, 1.0, 1.0),
    "red": (1.0, 0.6, 0.52),
    "green": (0.6, 1.0, 0.58),
    "blue": (0.56, 0.72, 1.0),
    "yellow": (1.0, 0.95, 0.5),
    "purple": (0.9, 0.58, 1.0),
}


def _loaders() -> dict[str, Callable[[], Any]]:
    from skimage import data
    from sklearn.datasets import load_sample_image

    return {
        "astronaut": data.astronaut,
        "cat": data.chelsea,
        "coffee": data.coffee,
        "rocket": data.rocket,
        "motorcycle": lambda: data.stereo_motorcycle()[0],  # type: ignore[no-untyped-call]
        "temple": lambda: load_sample_image("china.jpg"),
        "flower": lambda: load_sample_image("flower.jpg"),
        "galaxy": data.hubble_deep_field,
        "retina": data.retina,
        "tissue": data.immunohistochemistry,
        "photographer": data.camera,
        "coins": data.coins,
        "moon": data.moon,
        "brick": data.brick,
        "gravel": data.gravel,
        "grass": data.grass,
        "page": data.page,
        "face": data.lfw_subset,
    }


@lru_cache(maxsize=len(KINDS))
def picture(kind: str) -> Pixels:
    """The picture behind a kind, [height, width, 3], grey ones stretched to the full range; faces are [100, 25, 25]."""
    loaded = np.asarray(_loaders()[kind]())
    if kind == "face":
        return np.round(loaded[:FACES] * 255).astype(np.uint8)
    if loaded.ndim == 3:
        return loaded.astype(np.uint8)
    # The moon's grey levels fill a tenth of the range: stretch what lies between the outer percents.
    low, high = np.percentile(loaded, (0.5, 99.5))
    stretched = np.clip((loaded.astype(np.float64) - low) / (high - low), 0, 1)
    return np.repeat(np.round(stretched * 255).astype(np.uint8)[..., None], 3, axis=2)


def render(kind: str, place: Box | int, tint: str | None) -> Pixels:
    """One crop of a picture (or one face, by number) as [32, 32, 3], in its tint."""
    from PIL import Image

    whole = picture(kind)
    if isinstance(place, int):
        part = np.repeat(whole[place][..., None], 3, axis=2)
    else:
        left, top, side = place
        part = whole[top : top + side, left : left + side]
    small = np.asarray(Image.fromarray(part).resize((SIZE, SIZE), Image.Resampling.LANCZOS), np.float64)
    if tint is not None:
        small = small * np.array(TINTS[tint])
    return np.asarray(np.round(small), np.uint8)
