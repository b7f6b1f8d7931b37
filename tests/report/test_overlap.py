"""The part of a training picture that is in a generated one: in words on the pages, outlined on both pictures."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from skimage import data

from diffmem.copies.alignment import Alignment
from diffmem.copies.copying_metrics import copying_metrics
from diffmem.copies.descriptors.aligned import Aligned
from diffmem.data.images import load_images
from diffmem.experiments.match.page import keep, write
from diffmem.report.overlap import overlap_of
from diffmem.stages.match.folders import match_images
from diffmem.stages.match.stage import Matching, build_index

SIDE = 64
HALF = Alignment(0, 50.0, 3.0, 0.25, 0.9, (2.0, 0, 1.0, 0, 2.0, 1.0), (0, 0, 0.5, 0.5))


def test_outlines_are_in_shares_of_the_sides_of_either_picture():
    for form in (HALF.as_dict(), json.dumps(HALF.as_dict())):
        found = overlap_of(form, "whole picture")
        assert found.words == "25 % of the training picture, 2 times as large" and found.area == 0.25
        assert found.training == ((0, 0), (0.5, 0), (0.5, 0.5), (0, 0.5))
        # x in the picture = 2 x + 1 with sides from -1 to 1: the left upper quarter fills the whole.
        assert found.generated == ((0, 0), (1, 0), (1, 1), (0, 1))


def test_without_alignment_there_is_none_and_other_views_are_not_outlined():
    assert overlap_of(None, "whole picture") is None
    found = overlap_of(HALF.as_dict(), "centre square")
    assert found.words and found.training == found.generated == ()


@pytest.fixture
def folders(tmp_path):
    whole = Image.fromarray(data.astronaut())
    parts = [whole.crop((x, y, x + SIDE, y + SIDE)) for y in range(0, 256, SIDE) for x in range(0, 512, SIDE)]
    parts = [part for part in parts if np.asarray(part).std() > 30][:8]
    for name in ("train", "made"):
        (tmp_path / name).mkdir()
    for number, part in enumerate(parts):
        part.save(tmp_path / "train" / f"{number}.png")
    parts[2].transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "made" / "mirrored.png")
    return tmp_path


def test_the_page_of_matches_outlines_the_part_on_both_pictures(folders):
    train, made = load_images(folders / "train"), load_images(folders / "made")
    index = build_index(train, Aligned.of(side=32, channels=3, features=False), None)
    found = match_images(made, index, Matching(descriptor="aligned"))
    keep(folders / "run", made, index, found, copying_metrics(made, index))
    page = write(folders / "run").read_text(encoding="utf-8")
    (row,) = found.rows
    assert row["train_id"] == "2.png" and "mirrored" in row["part"] and row["part"] in page
    outlines = re.findall(r'viewBox="0 0 64 64".*?points="([^"]*)"', page)
    corners = [np.array([pair.split(",") for pair in outline.split()], float) / SIDE for outline in outlines]
    assert len(corners) == 2
    assert np.allclose(corners[0], row["alignment"]["corners"], atol=0.001)
    assert corners[1].min(0) == pytest.approx(row["alignment"]["box"][:2], abs=0.001)
    assert corners[1].max(0) == pytest.approx(row["alignment"]["box"][2:], abs=0.001)
    hidden = write(folders / "run", redact="hash", out=folders / "hidden.html").read_text(encoding="utf-8")
    assert "<polygon" not in hidden and row["part"] in hidden
