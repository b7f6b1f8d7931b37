"""A network of one's own on the command line: `module:function`, and models without prompts."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from diffmem.cli.app import main
from diffmem.errors import ModelError, UsageError
from diffmem.models.functions import is_function, open_function
from diffmem.user_code import load_object

BUILDER = '''
import torch
from helper import SHAPE
from diffmem import Target

PICTURES = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))


def memorizer(x, t, cond):
    """x0_hat of a network that holds four pictures, pixels in [0, 1]."""
    a, s = 1 - t, t.clamp_min(1e-3)
    distance = (x[:, None] - a.reshape(-1, 1, 1, 1, 1) * PICTURES[None]).square().flatten(2).sum(2)
    weights = (-distance / (2 * s.reshape(-1, 1) ** 2)).softmax(1)
    return (weights[:, :, None, None, None] * PICTURES[None]).sum(1)


def build(scale=1, device="cpu", prediction="x0"):
    return Target.from_callable(
        lambda x, t, c: scale * memorizer(x, t, c), SHAPE, prediction=prediction, schedule="flow", pixel_range=(0, 1), steps=10
    )


def classes():
    return Target.from_callable(memorizer, SHAPE, prediction="x0", schedule="flow", pixel_range=(0, 1), classes=4, steps=5)


def broken():
    raise FileNotFoundError("weights.pt")


def network():
    return memorizer


def script():
    raise SystemExit(0)
'''


@pytest.fixture()
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text(BUILDER)
    (tmp_path / "helper.py").write_text("SHAPE = (1, 16, 16)\n")
    (tmp_path / "ends.py").write_text("import sys\n\nsys.exit(0)\n")
    yield tmp_path
    for name in ("mine", "helper"):
        sys.modules.pop(name, None)


@pytest.fixture()
def pictures(folder):
    """The four pictures that the network holds, and twelve that it does not."""
    for name, places in (("train", range(4)), ("heldout", range(4, 16))):
        (folder / name).mkdir()
        target = open_function("mine.py:build")
        held = load_object("mine.py:PICTURES", "pictures")
        for place in places:
            values = held[place, 0].numpy() if place < 4 else np.random.default_rng(place).random((16, 16))
            Image.fromarray(np.uint8(np.round(values * 255))).save(folder / name / f"{place}.png")
        assert target.name == "mine.py:build"
    return folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [("mine:build", True), ("./mine.py:build", True), ("a.b.c:build(w.pt, k=3)", True), ("testbed:digits", True),
     ("owner/name", False), ("sd1.4", False), ("C:\\models\\x", False), ("https://host/x", False), ("mine.py", False)],
)  # fmt: skip
def test_what_counts_as_a_function(text, expected):
    # Bundled models are looked for first (`cli.model_options`), so their form may be the same.
    assert is_function(text) is expected


@pytest.mark.parametrize("text", ["mine.py:build(2)", "mine:build(scale=2)", "./mine.py:build( scale = 2 )"])
def test_a_function_is_given_its_arguments(folder, text):
    target = open_function(text)
    import torch

    x = torch.zeros(1, 1, 16, 16)
    one = open_function("mine.py:build").denoiser.predict(x, 0.5, target.denoiser.null())
    torch.testing.assert_close(target.denoiser.predict(x, 0.5, target.denoiser.null()), 2 * one)


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("mine.py:nothing", UsageError, "no 'nothing'. It defines: memorizer, build, classes, broken, network"),
        ("none.py:build", UsageError, "file none.py does not exist"),
        ("nonesuch.module:build", UsageError, "no module nonesuch.module"),
        ("mine.py:broken", ModelError, "failed: FileNotFoundError: weights.pt"),
        ("mine.py:network", ModelError, "returned a function; expected a model"),
        ("mine.py:build(1, 2, 3, 4)", UsageError, "cannot be called so: too many positional"),
        ("mine.py:script", ModelError, "failed: SystemExit: 0"),
        ("ends.py:build", UsageError, "importing ends.py raises SystemExit: 0"),
        ("mine.py:PICTURES", UsageError, "is a Tensor; expected a function"),
        ("mine.py:build(**{'scale': 2})", UsageError, "write out the arguments"),
        ("mine.py:build(*[2])", UsageError, "write out the arguments"),
        ("mine.py:build(epoch=3)", UsageError, r"unexpected keyword argument 'epoch'; it is build\(scale=1"),
    ],
)
def test_what_is_wrong_with_a_function_is_said(folder, text, error, match):
    with pytest.raises(error, match=match):
        open_function(text)


def test_a_file_that_cannot_be_run(folder):
    (folder / "odd.py").write_text("import nonesuch_package\n")
    with pytest.raises(UsageError, match=r"importing odd\.py raises ModuleNotFoundError"):
        open_function("odd.py:build")


def test_an_unconditional_network_is_audited_by_samples(pictures, capsys):
    code = main(["audit", "mine.py:build", "--samples", "6", "--train", "train", "--heldout", "heldout", "--out", "run",
                 "--fpr", "0.1", "--json"])  # fmt: skip
    summary = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (summary["images"]["made"], summary["images"]["errors"], summary["prompts"]["total"]) == (6, 0, 6)
    assert (summary["copies"]["images_copied"], summary["copies"]["training_images_copied"]) == (6, 4)
    states = {check["check"]: check["state"] for check in summary["checks"]}
    assert states["the model is what it was declared to be"] == "passed"
    assert summary["scores"] == []


def test_generate_makes_as_many_samples(pictures, capsys):
    assert main(["generate", "mine:build", "--samples", "3", "--out", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["made"] == 3
    assert len(list((pictures / "run/png").glob("*.png"))) == 3


def test_a_wrong_declaration_ends_with_1_and_names_the_right_one(pictures, capsys):
    command = ["measure", "mine.py:build(prediction=epsilon)", "--images", "train", "--score", "loss"]
    assert main(command) == 1
    assert "as x0 the loss on these images is" in capsys.readouterr().err
    assert main([*command, "--despite-check"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["audit", "mine.py:build", "--out", "run"], "--samples N"),
        (["audit", "mine.py:build", "a", "--samples", "2", "--out", "run"], "not both"),
        (["generate", "mine.py:classes", "--samples", "2", "--out", "run"], "takes them: give prompts"),
        (["generate", "mine.py:build", "--samples", "0", "--out", "run"], "at least 1"),
        (["extract", "mine.py:build", "--samples", "20", "--images-per-prompt", "3", "--out", "run"], "leave --images-per"),
        (["score", "mine.py:classes", "0", "--lora", "x.safetensors"], "--lora says how diffmem opens a model"),
        (["score", "mine.py:classes", "0", "--dtype", "float16"], "unexpected keyword argument 'dtype'"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_2(folder, capsys, arguments, said):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_doctor_looks_at_images_and_other_verbs_say_that_they_did_not(pictures, capsys):
    doctor = ["doctor", "mine.py:build", "--budget", "0"]
    assert main(doctor) == 0
    assert "Not checked" in capsys.readouterr().out
    assert main([*doctor, "--images", "train", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["check"]["fit"]["passed"] is True
    assert main(["doctor", "mine.py:build(prediction=epsilon)", "--budget", "0", "--images", "train"]) == 1
    assert "as x0 the loss" in capsys.readouterr().out.replace("\n", " ")
    assert main(["generate", "mine.py:build", "--samples", "1", "--out", "run"]) == 0
    assert "Not checked" in capsys.readouterr().err
