import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from diffmem.copies.descriptors import DESCRIPTORS, make_descriptor
from diffmem.copies.descriptors.download import fetch
from diffmem.copies.descriptors.inception import Inception
from diffmem.copies.descriptors.l2 import L2Tiled, tiles_per_side
from diffmem.copies.descriptors.preprocess import Preprocessing
from diffmem.copies.descriptors.sscd import PINS, PRESETS, SSCD
from diffmem.data.images import load_images
from diffmem.errors import DataError, ModelError, UsageError

RNG = np.random.default_rng(0)


def picture(height, width, channels=3):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize(("side", "tiles"), [(1, 1), (8, 1), (31, 1), (32, 2), (47, 2), (48, 3), (64, 4), (512, 4)])
def test_tiles(side, tiles):
    assert tiles_per_side(side) == tiles


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (8, 3), (32, 3), (48, 1), (64, 3)])
def test_l2_is_the_worst_tiles_rms(side, channels):
    one, two = picture(side, side), picture(side, side)
    descriptor = L2Tiled.of(side=side, channels=channels)
    a, b = descriptor.describe([one, two])
    assert a.dtype == np.float32 and a.min() >= 0 and a.max() <= 1
    mode, n = ("RGB" if channels == 3 else "L"), side // tiles_per_side(side)
    x, y = (np.asarray(image.convert(mode), float) / 255 for image in (one, two))
    worst = max(
        np.sqrt(np.square(x[i : i + n, j : j + n] - y[i : i + n, j : j + n]).mean())
        for i in range(0, side, n)
        for j in range(0, side, n)
    )
    found = descriptor.metric.exact(a[None], b[None])[0]
    assert found == pytest.approx(1 - worst, abs=1e-6)
    assert descriptor.metric.exact(a[None], a[None])[0] == 1


def test_l2_sees_a_difference_in_one_corner_that_the_mean_would_hide():
    plain = Image.new("RGB", (64, 64), (200, 200, 200))
    corner = plain.copy()
    corner.paste((0, 0, 0), (0, 0, 16, 16))
    descriptor = L2Tiled.of(side=64)
    a, b = descriptor.describe([plain, corner])
    assert descriptor.metric.distance(descriptor.metric.exact(a[None], b[None])[0]) == pytest.approx(200 / 255)


def test_grey_sets_give_the_same_distances_in_one_or_three_channels():
    greys = [picture(32, 32, 1) for _ in range(2)]
    colours = [image.convert("RGB") for image in greys]
    values = []
    for channels in (1, 3):
        for images in (greys, colours):
            descriptor = L2Tiled.of(side=32, channels=channels)
            a, b = descriptor.describe(images)
            values.append(descriptor.metric.exact(a[None], b[None])[0])
    np.testing.assert_allclose(values, values[0], atol=1e-7)


def test_l2_averages_down():
    image = Image.fromarray(np.kron(np.array([[0, 255], [255, 0]], np.uint8), np.ones((10, 20), np.uint8)))
    assert L2Tiled.of(side=2, channels=1).describe([image]).tolist() == [[0, 1, 1, 0]]


def test_l2_is_fitted_to_its_images():
    def fitted(*images):
        return L2Tiled.for_images(load_images(list(images))).recipe

    assert fitted(picture(8, 8, 1)) == {"side": 8, "channels": 1, "tiles": 1, "resize": "box"}
    assert fitted(picture(8, 8, 1).convert("RGB"))["channels"] == 1
    assert fitted(picture(50, 90), picture(50, 50, 1)) == {"side": 48, "channels": 3, "tiles": 3, "resize": "box"}
    assert fitted(picture(300, 200))["side"] == 64
    assert L2Tiled.for_images(load_images([picture(8, 8)]), side=16).recipe["side"] == 16
    with pytest.raises(DataError, match="can be decoded"):
        fitted("nothing.png")


@pytest.mark.parametrize("options", [{"side": 0}, {"side": 33}, {"channels": 2}])
def test_l2_refuses_sizes_that_do_not_tile(options):
    with pytest.raises(UsageError, match=f"{next(iter(options))} = "):
        L2Tiled.of(**options)


def test_registry_and_fingerprints():
    assert {"l2-tiled", "aligned", "efficientnet", "sscd", "dinov2", "clip"} <= set(DESCRIPTORS)
    with pytest.raises(UsageError, match="Did you mean 'l2-tiled'"):
        make_descriptor("l2-tile")
    made = make_descriptor("l2-tiled", load_images([picture(8, 8)]))
    assert made.fingerprint == L2Tiled.of(side=8).fingerprint
    assert len({d.fingerprint for d in (L2Tiled.of(side=8), L2Tiled.of(side=16), L2Tiled.of(side=8, channels=1))}) == 3


# --- preprocessing ---------------------------------------------------------------------------------------------------


def test_short_edge_keeps_the_aspect_ratio_and_crops_the_centre():
    step = Preprocessing(8, "short", None, (0, 0, 0), (1, 1, 1))
    assert step(picture(20, 31)).shape == (3, 8, 12)  # 8 · 31 / 20 = 12.4
    crop = Preprocessing(8, "short", 5, (0, 0, 0), (1, 1, 1))
    image = picture(8, 12)
    expected = np.asarray(image)[2:7, 4:9].transpose(2, 0, 1) / 255  # round(1.5) = 2, round(3.5) = 4
    np.testing.assert_allclose(crop(image), expected, atol=1e-6)
    assert Preprocessing(6, "square")(picture(20, 31)).shape == (3, 6, 6)


def test_normalisation_and_padding():
    white = Image.new("L", (4, 4), 255)
    values = Preprocessing(4, "square", None, (0.5, 0.5, 0.5), (0.5, 0.25, 0.5))(white)
    assert values[:, 0, 0].tolist() == [1, 2, 1]
    padded = Preprocessing(4, "square", 6, (0, 0, 0), (1, 1, 1))(white)
    assert padded.shape == (3, 6, 6) and padded.sum() == 3 * 16


# --- SSCD ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torchscript(tmp_path_factory):
    import torch

    class Tiny(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 6, 16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.normalize(self.conv(x).mean((2, 3)))

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("sscd") / "tiny.torchscript.pt"
    torch.jit.script(Tiny().eval()).save(str(path))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("preset", list(PRESETS))
def test_sscd_describes_each_image_on_its_own(torchscript, preset):
    import torch

    path, sha256 = torchscript
    descriptor = SSCD.of(weights=path, preset=preset, sha256=sha256, batch=2)
    images = [picture(30, 40), picture(20, 20), picture(30, 40), picture(40, 30), picture(30, 40, 1)]
    together = descriptor.describe(images)
    assert together.shape == (5, 6) and together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([descriptor.describe([image]) for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    network = torch.jit.load(str(path))
    direct = network(torch.from_numpy(PRESETS[preset](images[1]))[None]).detach().numpy()
    np.testing.assert_allclose(together[1:2], direct, atol=1e-5)
    assert descriptor.recipe["sha256"] == sha256


def test_sscd_presets_are_those_of_the_field():
    shapes = {name: step(picture(300, 400)).shape[1:] for name, step in PRESETS.items()}
    assert shapes == {
        "short-288": (288, 384),
        "square-320": (320, 320),
        "square-288": (288, 288),
        "square-256": (256, 256),
        "square-32": (32, 32),
        "crop-224": (224, 224),
    }
    white = Image.new("RGB", (300, 300), (255, 255, 255))
    assert PRESETS["crop-224"](white)[:, 0, 0].tolist() == [1, 1, 1]
    np.testing.assert_allclose(PRESETS["short-288"](white)[:, 0, 0], [2.2489, 2.4286, 2.64], atol=1e-4)


def test_sscd_fingerprint_knows_weights_and_preset(torchscript):
    path, sha256 = torchscript
    made = [SSCD.of(weights=path, preset=preset, sha256=sha256).fingerprint for preset in PRESETS]
    assert len(set(made)) == len(PRESETS)


def test_sscd_is_not_opened_without_its_checksum(torchscript, tmp_path, monkeypatch):
    import torch

    path, sha256 = torchscript
    opened = []
    load = torch.jit.load
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: opened.append(1) or load(*a, **k))
    with pytest.raises(ModelError, match=f"{sha256}, which is none of the pinned"):
        SSCD.of(weights=path)
    with pytest.raises(ModelError, match="expected 00"):
        SSCD.of(weights=path, sha256="00" * 32, allow_pickle=True)
    with pytest.raises(ModelError, match="disc_large"):
        SSCD.of(weights="disc_large", cache=tmp_path)
    assert opened == []
    assert SSCD.of(weights=path, allow_pickle=True).sha256 == sha256
    monkeypatch.setitem(PINS, "disc_mixup", sha256)
    assert SSCD.of(weights=path).sha256 == sha256
    assert opened == [1, 1]


def test_sscd_errors_name_file_and_remedy(tmp_path):
    with pytest.raises(ModelError, match="Cannot read the SSCD weights"):
        SSCD.of(weights=tmp_path / "none.pt")
    (tmp_path / "x.pt").write_bytes(b"text")
    with pytest.raises(ModelError, match="not a TorchScript file"):
        SSCD.of(weights=tmp_path / "x.pt", allow_pickle=True)
    with pytest.raises(UsageError, match="no SSCD preset 'big'"):
        SSCD.of(weights=tmp_path / "x.pt", preset="big")


def test_download_is_checked_and_kept(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    source = tmp_path / "w.pt"
    source.write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(ModelError, match="was deleted"):
        fetch(source.as_uri(), "00" * 32, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    kept = fetch(source.as_uri(), sha256, tmp_path / "cache")
    assert kept.read_bytes() == b"weights"
    source.unlink()
    assert fetch(source.as_uri(), sha256, tmp_path / "cache") == kept
    with pytest.raises(ModelError, match="Cannot download"):
        fetch((tmp_path / "gone.pt").as_uri(), sha256, tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE forbids"):
        fetch((tmp_path / "gone.pt").as_uri(), sha256, tmp_path / "cache")


# --- DINOv2 and CLIP -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub_models(tmp_path_factory):
    import torch
    from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("hub")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    Dinov2Model(Dinov2Config(**small, image_size=28, patch_size=14)).save_pretrained(root / "dinov2")
    vision = {**small, "image_size": 32, "patch_size": 16}
    clip = CLIPConfig(text_config={**small, "vocab_size": 50}, vision_config=vision, projection_dim=8)
    CLIPModel(clip).save_pretrained(root / "clip")
    return root


@pytest.mark.parametrize(("name", "size", "side"), [("dinov2", 16, 28), ("clip", 8, 32)])
def test_hub_descriptors_from_a_folder(hub_models, name, size, side):
    descriptor = make_descriptor(name, weights=hub_models / name, batch=2)
    images = [picture(40, 50), picture(33, 33, 1), picture(20, 64)]
    vectors = descriptor.describe(images)
    assert vectors.shape == (3, size) and vectors.dtype == np.float32 and np.isfinite(vectors).all()
    alone = np.concatenate([descriptor.describe([image]) for image in images])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)
    assert descriptor.recipe["preprocessing"]["crop"] == side
    assert list(descriptor.recipe["weights"]) == ["model.safetensors"]
    if name == "clip":
        import torch
        from transformers import CLIPModel

        full = CLIPModel.from_pretrained(hub_models / name)
        pixels = torch.from_numpy(np.stack([descriptor._preprocessing(image) for image in images]))
        features = full.get_image_features(pixel_values=pixels)
        features = getattr(features, "pooler_output", features)
        np.testing.assert_allclose(vectors, features.detach().numpy(), atol=1e-5)


def test_hub_preprocessing_is_read_from_the_folder(hub_models, tmp_path):
    import shutil

    folder = shutil.copytree(hub_models / "dinov2", tmp_path / "m")
    plain = make_descriptor("dinov2", weights=folder)
    said = {"size": {"shortest_edge": 30}, "crop_size": {"height": 28, "width": 28}, "resample": 2}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**said, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]})
    )
    changed = make_descriptor("dinov2", weights=folder)
    expected = {"resize": 30, "mode": "short", "crop": 28, "mean": [0, 0, 0], "std": [1, 1, 1], "resample": "bilinear"}
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in changed.recipe["preprocessing"].items()} == expected
    assert changed.fingerprint != plain.fingerprint
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 28, "width": 28}, "do_center_crop": False})
    )
    assert make_descriptor("dinov2", weights=folder).recipe["preprocessing"]["mode"] == "square"


def test_hub_errors(hub_models, tmp_path):
    with pytest.raises(ModelError, match="is a clip model; dinov2 needs"):
        make_descriptor("dinov2", weights=hub_models / "clip")
    with pytest.raises(ModelError, match=r"config\.json"):
        make_descriptor("clip", weights=tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ModelError, match=r"no \.safetensors file"):
        make_descriptor("clip", weights=tmp_path)
    from safetensors.torch import load_file, save_file

    weights = load_file(hub_models / "clip" / "model.safetensors")
    weights.pop("visual_projection.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((hub_models / "clip" / "config.json").read_text())
    with pytest.raises(ModelError, match=r"lacks 1 weights.*visual_projection"):
        make_descriptor("clip", weights=tmp_path)
    with pytest.raises(ModelError, match="cannot be had"):
        make_descriptor("clip", weights="nobody/nothing-of-this-name")


# --- Inception ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """The interface of the published network: pixels 0 ... 255 of any size, features on request, else logits."""
    import torch

    class Tiny(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.features = torch.nn.Linear(3 * 5 * 5, 2048)
            self.output = torch.nn.Linear(2048, 1008)

        def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            x = torch.nn.functional.interpolate(img.float(), size=[5, 5]) / 128 - 1
            found = self.features(x.flatten(1))
            return found if return_features else self.output(found)

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "inception.pt"
    torch.jit.script(Tiny().eval()).save(str(path))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_inception_hands_over_pixels_of_any_size_each_image_on_its_own(inception_file):
    import torch

    path, sha256 = inception_file
    descriptor = Inception.of(weights=path, sha256=sha256, batch=2)
    images = [picture(30, 40), picture(8, 8), picture(30, 40), picture(8, 8, 1), picture(30, 40)]
    together = descriptor.describe(images)
    assert together.shape == (5, 2048) and together.dtype == np.float32
    network = torch.jit.load(str(path))
    for row, image in zip(together, images, strict=True):
        pixels = torch.from_numpy(np.asarray(image.convert("RGB"), np.uint8).copy()).permute(2, 0, 1)[None]
        np.testing.assert_allclose(row, network(pixels, return_features=True)[0].detach(), rtol=1e-4, atol=1e-5)


def test_inception_is_checked_and_refuses_other_networks(inception_file, torchscript, tmp_path):
    path, _ = inception_file
    with pytest.raises(ModelError, match="--weights-sha256"):
        Inception.of(weights=path)
    assert Inception.of(weights=path, allow_pickle=True).recipe == {"sha256": inception_file[1]}
    with pytest.raises(ModelError, match="expected 00"):
        Inception.of(weights=path, sha256="00")
    with pytest.raises(UsageError, match="needs its weights"):
        make_descriptor("inception")
    with pytest.raises(ModelError, match="StyleGAN2-ADA"):
        Inception.of(weights=tmp_path / "none.pt", allow_pickle=True)
    with pytest.raises(ModelError, match="return_features"):
        Inception.of(weights=torchscript[0], allow_pickle=True).describe([picture(32, 32)])
