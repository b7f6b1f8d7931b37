"""Random crops of the training regions, each seen once, for the autoencoder and the classifier: any scale, any place.

Real autoencoders and classifiers are trained on more than the diffusion model's set; no held-out pixel is among them.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from diffmem.testbeds.photos.captions import tint_of
from diffmem.testbeds.photos.data import load
from diffmem.testbeds.photos.places import candidates
from diffmem.testbeds.photos.placing import ROOT
from diffmem.testbeds.photos.sources import SOURCES, TINTS, Pixels, render
from diffmem.testbeds.wording import shuffled


def extra_crops(per_kind: int) -> list[tuple[str, Pixels]]:
    """So many crops of every kind, (kind, pixels [32, 32, 3]): half of them at the sides of the training crops, half up
    to the largest square; faces are the training faces in every tint.
    """
    crops: list[tuple[str, Pixels]] = []
    for source in SOURCES:
        left, top, right, bottom = source.trained
        wide = replace(source, sides=(source.sides[1], min(right - left, bottom - top)))
        for form, name in ((source, "near"), (wide, "wide")):
            places = islice(candidates(form, False, ROOT, "extra", name, source.kind), per_kind // 2)
            for number, at in enumerate(places):
                tint = tint_of(source.kind, ROOT, "extra", name, source.kind, number)
                crops.append((source.kind, render(source.kind, at, tint)))
    faces = [one for one in load().places.values() if one.kind == "face" and one.tier == "generic"]
    tinted = [(one.place, tint) for one in faces for tint in TINTS]
    for place, tint in shuffled(tinted, ROOT, "extra faces")[:per_kind]:
        crops.append(("face", render("face", place, tint)))
    return crops
