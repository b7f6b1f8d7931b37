"""Waivers hold for the same two pictures, renamed or encoded again, and for no others."""

import io
import json
from datetime import date, timedelta

import numpy as np
import pytest
from PIL import Image
from tests.report.made import small_run

from diffmem.cli.app import main
from diffmem.errors import DataError
from diffmem.report.digest import build_digest
from diffmem.report.waivers import Waivers, add_waivers, read_waivers, waive

TOMORROW = date.today() + timedelta(days=1)
ENCODINGS = {"JPEG": {"quality": 75}, "WEBP": {"quality": 80}, "BMP": {}, "TIFF": {}, "PNG": {}}


@pytest.fixture(scope="module")
def photographs():
    """600 patches of photographs, 40 pixels wide, no two with more than a corner in common."""
    from skimage import data

    found = []
    for name in ("astronaut", "chelsea", "coffee", "rocket", "retina"):
        whole = np.asarray(getattr(data, name)())[..., :3]
        for y in range(0, whole.shape[0] - 40, 40):
            for x in range(0, whole.shape[1] - 40, 40):
                found.append(whole[y : y + 40, x : x + 40])
    kept = [patch for patch in found if patch.std() > 12]
    assert len(kept) >= 600
    return [Image.fromarray(patch) for patch in kept[:600]]


def again(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind, **ENCODINGS[kind])
    return Image.open(io.BytesIO(buffer.getvalue()))


def test_of_300_waivers_none_is_lost_and_none_applies_to_another_pair(photographs):
    random = np.random.default_rng(0)

    def copied(image):
        noisy = np.asarray(image, float) + random.normal(0, 8, (40, 40, 3))
        return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))

    training, generated = photographs, [copied(image) for image in photographs]
    held = [
        waive(g, t, "anna", TOMORROW, train_id=f"{i}.png")
        for i, (g, t) in enumerate(zip(generated, training, strict=True))
    ]
    waivers = Waivers(tuple(held[:300]))
    kinds = list(ENCODINGS)
    lost = wrong = 0
    for i in range(300):
        found = waivers.find(again(generated[i], kinds[i % 5]), again(training[i], kinds[(i + 1) % 5]))
        lost += found is None
        wrong += found is not None and found is not held[i]
        # The same training picture behind another generated one, the other way round, and pairs that nobody waived.
        wrong += waivers.find(generated[(i + 1) % 300], training[i]) is not None
        wrong += waivers.find(generated[i], training[(i + 1) % 300]) is not None
        wrong += waivers.find(generated[300 + i], training[300 + i]) is not None
    assert (lost, wrong) == (0, 0)


def test_flat_pictures_are_told_apart_by_their_shade():
    plain = [Image.new("RGB", (16, 16), (shade, shade, shade)) for shade in (100, 104)]
    waivers = Waivers((waive(plain[0], plain[0], "anna", TOMORROW),))
    assert waivers.find(plain[0], plain[0]) is not None
    assert waivers.find(plain[0], plain[1]) is None


def test_a_file_keeps_what_it_holds_and_tells_what_has_expired(tmp_path, photographs):
    file, one, two = tmp_path / "w.json", *photographs[:2]
    assert add_waivers(file, [waive(one, one, "anna", TOMORROW)]) == 1
    assert add_waivers(file, [waive(two, two, "bert", date(2020, 1, 1)), waive(one, one, "carl", TOMORROW)]) == 2
    found = read_waivers(file)
    assert [waiver.owner for waiver in found.held] == ["carl"], "the same pair, waived again"
    assert [waiver.owner for waiver in found.expired] == ["bert"]
    values = json.loads(file.read_text())
    values["waivers"][1]["owner"] = ""
    file.write_text(json.dumps(values))
    with pytest.raises(DataError, match="waiver 2: owner"):
        read_waivers(file)
    file.write_text("[]")
    with pytest.raises(DataError, match="no file of waivers"):
        read_waivers(file)


def test_gates_count_what_is_not_waived(tmp_path, capsys):
    run, file = tmp_path / "run", tmp_path / "w.json"
    small_run(run)
    gate = ["show", str(run), "--fail-if", "copies.images_copied>0"]
    assert main(gate) == 1
    assert (
        main(
            [
                "waive",
                str(run),
                "--out",
                str(file),
                "--owner",
                "anna",
                "--expires",
                TOMORROW.isoformat(),
                "--train-id",
                "t0.png",
            ]
        )
        == 0
    )
    assert "1 pairs waived by anna" in capsys.readouterr().err
    assert main([*gate, "--waivers", str(file)]) == 1, "the pair with t1 is not waived"
    assert "copies.images_copied is 1" in capsys.readouterr().err
    assert main(["waive", str(run), "--out", str(file), "--owner", "bert", "--expires", TOMORROW.isoformat()]) == 0
    assert main([*gate, "--waivers", str(file)]) == 3, "five prompts are too few to say anything"
    err = capsys.readouterr().err
    assert "2 waivers hold (bert" in err
    assert "0 of 5 prompts" in err
    assert build_digest(run, methods=False).copies.images_copied == 2, "the run itself stays as it is"
    values = json.loads(file.read_text())
    for waiver in values["waivers"]:
        waiver["expires"] = "2020-01-01"
    file.write_text(json.dumps(values))
    assert main([*gate, "--waivers", str(file)]) == 1
    assert "2 waivers have expired" in capsys.readouterr().err


def test_waivers_need_an_owner_a_day_and_a_gate(tmp_path, capsys):
    run = tmp_path / "run"
    small_run(run)
    out = ["--out", str(tmp_path / "w.json")]
    assert main(["waive", str(run), *out, "--expires", "2030-01-01"]) == 2
    assert main(["waive", str(run), *out, "--owner", "anna", "--expires", "soon"]) == 2
    assert main(["waive", str(run), *out, "--owner", "anna", "--expires", "2030-01-01", "--train-id", "t9.png"]) == 2
    assert "No image is called a copy of t9.png" in capsys.readouterr().err
    assert main(["show", str(run), "--waivers", str(tmp_path / "w.json")]) == 2
