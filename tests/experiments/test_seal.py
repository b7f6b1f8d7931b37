"""Sealed runs: every edit of a bundle is found, hostile files do nothing, and images are made again from the model."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile

import numpy as np
import pytest

from diffmem.cli.app import main
from diffmem.data.png import png_bytes
from diffmem.errors import DataError, UsageError
from diffmem.experiments.seal.replay import _compared
from diffmem.experiments.seal.run import seal, verify
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
from diffmem.runs.bundle import CHAIN, PROTOCOL, check_bundle, write_bundle
from diffmem.stages.generate import Generation, generate
from tests.tiny import picture, tiny_sd

SETTINGS = Generation(images_per_prompt=2, seed=5, sampling=Sampling(steps=2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sealed") / "run"
    generate(Target.from_pipeline(tiny_sd(), name="tiny"), ["a red fox", "a blue bird"], SETTINGS, out=folder)
    (folder / "index").mkdir()
    (folder / "index" / "meta.json").write_text("{}")
    (folder / "weights.safetensors").write_bytes(b"\0" * 100)
    return folder


@pytest.fixture(scope="module")
def bundle(run):
    return seal(run)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    for i in range(4):
        (folder / f"{i}.json").write_text(json.dumps({"row": i}))
    path = folder / "small.sealed"
    text = write_bundle(path, {"verb": "audit"}, {f"run/{i}.json": folder / f"{i}.json" for i in range(4)})
    return path.read_bytes(), text


def test_a_sealed_run_is_intact_and_says_what_is_not_in_it(run, bundle):
    found = verify(bundle.path, expected=bundle.seal)
    assert not found.problems and found.checked.seal == bundle.seal
    assert bundle.path == run.with_name("run.sealed")
    assert set(bundle.left_out) == {"index/", "weights.safetensors"}
    names = [link.name for link in found.checked.links]
    assert names[0] == PROTOCOL and "run/run.json" in names and any(n.startswith("run/parts/images/") for n in names)
    assert not any("weights" in name or "index" in name or name.endswith(".lock") for name in names)
    assert found.checked.protocol["left_out"] == dict(bundle.left_out)
    assert found.checked.protocol["run"]["plan"]["generate"]["seed"] == 5
    assert hashlib.sha256(bundle.path.read_bytes()[:-64]).hexdigest() == bundle.seal


def edit(content: bytes, random: np.random.Generator) -> bytes:
    """One random edit of the bytes, or of the files with a seal that is written anew."""
    kind, place = random.integers(10), int(random.integers(len(content)))
    if kind < 4:
        return content[:place] + bytes([content[place] ^ int(random.integers(1, 256))]) + content[place + 1 :]
    if kind == 4:
        return content[:place]
    if kind == 5:
        return content[:place] + random.bytes(int(random.integers(1, 9))) + content[place:]
    files = entries(content)
    number = int(random.integers(len(files)))
    name, text = files[number]
    if kind == 6:
        del files[number]
    elif kind == 7:
        files.insert(number, (f"run/new-{random.integers(1000)}.json", text))
    elif kind == 8:
        files[number] = (f"{name}-{random.integers(1000)}", text)
    else:
        other = int((number + 1 + random.integers(len(files) - 1)) % len(files))
        files[number], files[other] = files[other], files[number]
    return rewritten(files)


def entries(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def rewritten(files, how=zipfile.ZIP_STORED):
    """An archive with a right seal: what an editor writes who knows the format, but leaves the chain as it is."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.comment = b"0" * 64
        for name, text in files:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text, how)
    content = stream.getvalue()[:-64]
    return content + hashlib.sha256(content).hexdigest().encode()


def test_each_of_a_thousand_random_edits_is_found(small, tmp_path):
    content, text = small
    random = np.random.default_rng(18)
    missed = []
    path = tmp_path / "edited"
    for number in range(1000):
        changed = edit(content, random)
        assert changed != content
        path.write_bytes(changed)
        if not check_bundle(path).problems:
            missed.append(number)
    assert not missed
    path.write_bytes(content)
    assert not check_bundle(path).problems and check_bundle(path).seal == text


def test_one_who_rewrites_chain_and_seal_is_found_by_the_seal_that_was_kept(small, tmp_path):
    _, text = small
    (tmp_path / "0.json").write_text('{"row": 7}')
    path = tmp_path / "forged"
    write_bundle(path, {"verb": "audit"}, {"run/0.json": tmp_path / "0.json"})
    assert not verify(path).problems
    assert "this is not the file that was sealed" in verify(path, expected=text).problems[0]
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        verify(path, expected="abc")


def test_what_was_edited_is_named(small, tmp_path):
    content, _ = small
    files = dict(entries(content))
    path = tmp_path / "edited"

    def problems(changed):
        path.write_bytes(rewritten(list(changed.items())))
        return " ".join(check_bundle(path).problems)

    assert problems(files) == ""
    flipped = content.replace(b'{"row": 3}', b'{"row": 4}')
    path.write_bytes(flipped)
    assert check_bundle(path).problems[1:] == ("'run/3.json' was changed",), (
        "named although the archive's own sum is wrong"
    )
    assert "'run/2.json' was changed" in problems(files | {"run/2.json": b"{}"})
    assert "'run/9.json' was added" in problems({"run/9.json": b"{}", **files})
    assert "'run/1.json' was removed" in problems({k: v for k, v in files.items() if k != "run/1.json"})
    assert "in another order" in problems(dict(reversed(files.items())))
    assert f"{CHAIN}, which holds the hashes, is missing or damaged" in problems(files | {CHAIN: b"[{}]"})
    chain = json.loads(files[CHAIN])
    chain[2]["link"] = "0" * 64
    assert "the chain is broken at" in problems(files | {CHAIN: json.dumps(chain).encode()})


class Payload:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


def test_hostile_files_are_named_and_do_nothing(small, tmp_path):
    content, _ = small
    files = dict(entries(content))
    place = tmp_path / "read"
    place.mkdir()
    path = place / "hostile"
    trap = tmp_path / "trap"
    for name in ("../evil.json", "/etc/evil", "run/../../evil", "run\\evil", "C:evil", "run/./x"):
        path.write_bytes(rewritten([*files.items(), (name, b"{}")]))
        assert any("is no plain file of a bundle" in text for text in check_bundle(path).problems), name
    path.write_bytes(rewritten([*files.items(), ("run/bomb.json", b"\0" * 20_000_000)], zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 100_000
    assert any("'run/bomb.json' is no plain file" in text for text in check_bundle(path).problems)
    (tmp_path / "state.pkl").write_bytes(pickle.dumps(Payload(trap)))
    write_bundle(path, {}, {"run/state.pkl": tmp_path / "state.pkl"})
    assert not verify(path).problems
    assert not trap.exists() and [p.name for p in place.iterdir()] == ["hostile"]
    path.write_bytes(b"PK" + b"\0" * 200)
    assert check_bundle(path).problems
    with pytest.raises(DataError, match="There is no file"):
        verify(tmp_path / "nothing")


def test_images_are_made_again_from_the_model(run, bundle):
    found = verify(bundle.path, target=Target.from_pipeline(tiny_sd(), name="tiny"), replays=3)
    assert not found.problems
    assert [one.text for one in found.replays] == ["equal"] * 3
    assert len({(one.prompt_id, one.draw) for one in found.replays}) == 3
    again = verify(bundle.path, target=Target.from_pipeline(tiny_sd(), name="tiny"), replays=2)
    assert again.replays == found.replays[:2], "which ones follows from the seal"
    other = verify(bundle.path, target=Target.from_pipeline(tiny_sd(seed=1), name="other"), replays=1)
    assert "open the same weights" in other.problems[0]


def test_another_image_than_the_models_is_said(run):
    target = Target.from_pipeline(tiny_sd(), name="tiny")
    proof = {
        "prompt": "a red fox", "draw": 0, "root_seed": 5, "sampling": {"steps": 2},
        "model": {"name": "tiny", "fingerprint": target.fingerprint},
    }  # fmt: skip
    row = {"prompt_id": "p", "draw": 0, "png": png_bytes(picture(3))}
    found = _compared(row, proof, target)
    assert not found.agrees and "another image" in found.text


def test_a_forged_file_without_its_usual_entries_is_read(small, tmp_path, capsys):
    path = tmp_path / "forged.sealed"
    path.write_bytes(small[0])
    assert main(["verify", str(path)]) == 0
    assert "the file does not say" in capsys.readouterr().out


def test_the_verbs(run, tmp_path, capsys):
    out = tmp_path / "x.sealed"
    assert main(["seal", str(run), "--out", str(out), "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["seal"]
    assert main(["verify", str(out), "--expect", text]) == 0
    said = capsys.readouterr().out
    assert "as expected" in said and "forges" not in said
    assert main(["verify", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{text}, not compared" in said and "only the seal that" in said and "--expect" in said
    assert main(["verify", str(out), "--replays", "2"]) == 2
    assert main(["verify", str(out), "--lora", "x.safetensors"]) == 2
    assert "give --model too" in capsys.readouterr().err
    with pytest.raises(UsageError, match="0 images cannot be made again"):
        verify(out, target=Target.from_pipeline(tiny_sd(), name="tiny"), replays=0)
    assert main(["verify", str(run)]) == 2
    assert "is a folder, no sealed run" in capsys.readouterr().err
    for verb in ("show", "report"):
        assert main([verb, str(out)]) == 2
        assert "is a file, no run directory" in capsys.readouterr().err
    out.write_bytes(out.read_bytes()[:-1] + b"x")
    assert main(["verify", str(out)]) == 1
    assert "not as it was sealed" in capsys.readouterr().err
    assert main(["seal", str(run), "--out", str(run / "inside")]) == 2
