"""Planted models of other makes than the bundled ones, trained here, so that a default is chosen on more than one kind.

Each plants 24 pictures 40 times under a caption of their own, shows 150 pictures once under captions of the same style
(hard) and the rest under generic captions; 150 more captions are never seen. What a caption makes the model reproduce
is measured by sampling it, with seeds that no score uses. Nothing is downloaded; one thread, at most 9 minutes each.

    python benchmarks/detectors/makes.py NAME... --folder DIR      (names: see MAKES)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from diffmem.models.conditioning import Conditioning
from diffmem.models.ode import sample
from diffmem.models.target import Target
from diffmem.randomness import generation_noise, generator, seed_of
from diffmem.testbeds.digits.captions import DIGIT_WORDS, PHRASINGS
from diffmem.testbeds.labels import summarize
from diffmem.testbeds.matching import References
from diffmem.testbeds.measuring import ROOT as TRUTH_ROOT
from diffmem.testbeds.measuring import matched
from diffmem.testbeds.parts import clip_text_encoder, clip_tokenizer, identity_vae
from diffmem.testbeds.training import CaptionIds, Recipe, epochs, fit
from diffmem.testbeds.wording import ADJECTIVES, NOUNS, Stems, shuffled

PLANTS, REPEATS, HARD, GENERIC, UNSEEN, IMAGES, STEPS = 24, 40, 150, 800, 150, 4, 10
DROP, WORDS, WIDTH = 0.1, 12, 64


@dataclass(frozen=True)
class Make:
    """How one model is made: the size of its pictures, its pipeline, how it is trained and sampled."""

    size: int
    pipeline: Callable[[int, int, int], Any]
    recipe: Recipe
    seed: int = 0
    guidance: float = 2.0
    train_text: bool = True


@dataclass(frozen=True)
class Caption:
    """A caption of one tier and the class that it names."""

    id: str
    text: str
    tier: str
    group: str | None
    count: int
    shows: int


def digits(size: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """scikit-learn's digits enlarged to `size`, in an order of the seed: pictures in [-1, 1], classes, their names."""
    from sklearn.datasets import load_digits

    flat, classes = load_digits(return_X_y=True)
    order = shuffled(range(len(flat)), seed, "makes")
    pictures = torch.from_numpy(flat[order].reshape(-1, 1, 8, 8) / 8 - 1).float()
    larger = torch.nn.functional.interpolate(pictures, size=(size, size), mode="bilinear", align_corners=False)
    return larger.numpy(), classes[order], list(DIGIT_WORDS)


def unet(channels: int, size: int, seed: int) -> Any:
    """A Stable Diffusion pipeline in pixel space, UNet of three levels, epsilon, linear betas."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    torch.manual_seed(seed_of(seed, "weights", "unet"))
    tokenizer = words()
    network: Any = UNet2DConditionModel(
        sample_size=size, in_channels=channels, out_channels=channels, layers_per_block=1,
        block_out_channels=(16, 32, 64), norm_num_groups=8, attention_head_dim=8, cross_attention_dim=WIDTH,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=identity_vae(channels, size), text_encoder=clip_text_encoder(tokenizer, hidden=WIDTH), tokenizer=tokenizer,
        unet=network, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def pixart(channels: int, size: int, seed: int) -> Any:
    """A PixArt pipeline in pixel space: transformer on 2x2 patches, frozen T5, epsilon, Stable Diffusion's betas."""
    from diffusers import DDIMScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -4.0)]
    pieces += [(f"\u2581{word}", -2.0) for word in vocabulary()] + [(chr(97 + i), -6.0) for i in range(26)]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0)
    tokenizer.model_max_length = WORDS
    torch.manual_seed(seed_of(seed, "weights", "pixart"))
    config = T5Config(
        vocab_size=len(pieces), d_model=WIDTH, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    transformer: Any = PixArtTransformer2DModel(
        sample_size=size, num_layers=4, patch_size=2, attention_head_dim=16, num_attention_heads=4,
        caption_channels=WIDTH, in_channels=channels, out_channels=channels, cross_attention_dim=WIDTH,
        attention_bias=True, norm_elementwise_affine=False, use_additional_conditions=False,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    return PixArtAlphaPipeline(
        transformer=transformer, scheduler=scheduler, vae=identity_vae(channels, size),
        text_encoder=T5EncoderModel(config).eval(), tokenizer=tokenizer,
    )  # fmt: skip


def vocabulary() -> list[str]:
    """Every word of a caption."""
    said = {w for phrase in PHRASINGS for w in phrase.replace(",", " ").replace("{}", " ").split()}
    return sorted(said | set(ADJECTIVES) | set(NOUNS) | set(DIGIT_WORDS))


def words() -> Any:
    """A CLIP tokenizer that knows the captions' words."""
    return clip_tokenizer(vocabulary(), 1400, WORDS)


MAKES = {
    "digits16-unet-0": Make(16, unet, Recipe(1400, batch=32)),
    "digits8-pixart": Make(8, pixart, Recipe(3500), train_text=False),
}


def captions(classes: np.ndarray, names: list[str], seed: int) -> tuple[list[list[str]], list[int], list[Caption]]:
    """Each picture's captions, how often it is in the set, and the captions that are scored."""
    stems = Stems(seed)

    def special(kind: int) -> str:
        return " ".join([*stems.stem(), names[kind]])

    texts, counts, asked = [], [], []
    for i, kind in enumerate(int(c) for c in classes[: PLANTS + HARD + GENERIC]):
        tier = "plant" if i < PLANTS else "hard" if i < PLANTS + HARD else "generic"
        if tier == "generic":
            texts.append([phrase.format(names[kind]) for phrase in PHRASINGS[:6]])
        else:
            texts.append([special(kind)])
            asked.append(Caption(f"{tier}-{i:03d}", texts[-1][0], tier, f"image-{i:04d}", 1, kind))
        counts.append(REPEATS if tier == "plant" else 1)
    asked += [
        Caption(f"generic-{kind}-{j}", phrase.format(name), "generic", None, 1, kind)
        for kind, name in enumerate(names)
        for j, phrase in enumerate(PHRASINGS[:6])
    ]
    random = np.random.default_rng(seed_of(seed, "unseen") % 2**32)
    kinds = random.integers(0, len(names), UNSEEN)
    asked += [Caption(f"unseen-{j:03d}", special(int(k)), "unseen", None, 0, int(k)) for j, k in enumerate(kinds)]
    return texts, counts, asked


def make(name: str, folder: Path) -> None:
    """Train one model into FOLDER/NAME and measure its captions into FOLDER/NAME.parquet; done parts are kept."""
    how = MAKES[name]
    pictures, classes, names = digits(how.size, how.seed)
    pictures = pictures[: PLANTS + HARD + GENERIC]
    texts, counts, asked = captions(classes, names, how.seed)
    path = folder / name
    if not (path / "log.json").exists():
        pipe = how.pipeline(pictures.shape[1], how.size, how.seed)
        log = train(pipe, how, pictures, texts, counts)
        pipe.save_pretrained(path)
        (path / "log.json").write_text(json.dumps(log, indent=1) + "\n")
    truth = measure(Target.from_pretrained(path), how, pictures, asked)
    table = pa.Table.from_pylist(truth)
    pq.write_table(
        table.replace_schema_metadata({"images": str(IMAGES), "guidance": str(how.guidance)}),
        path.with_suffix(".parquet"),
    )
    for tier in ("plant", "hard", "generic", "unseen"):
        labels = [row["label"] for row in truth if row["tier"] == tier]
        print(
            name,
            tier,
            len(labels),
            "captions,",
            labels.count("reproduced"),
            "reproduced,",
            labels.count("not reproduced"),
            "not",
        )


def train(pipe: Any, how: Make, pictures: np.ndarray, texts: list[list[str]], counts: list[int]) -> dict[str, Any]:
    """Plain diffusion training; a text encoder that is not trained is read once per caption."""
    rows_of = np.repeat(np.arange(len(counts)), counts)
    images = torch.from_numpy(pictures)
    network = (getattr(pipe, "transformer", None) or pipe.unet).eval()
    denoiser = Target.from_pipeline(pipe).denoiser
    random = generator(how.seed, "training", "digits")
    batches = epochs(len(rows_of), how.recipe.batch, how.seed)
    tokens = CaptionIds(pipe.tokenizer, texts, DROP) if how.train_text else None
    flat = [text for several in texts for text in several]
    starts = np.cumsum([0, *(len(several) for several in texts)])
    with torch.no_grad():
        known = None if tokens else Conditioning.cat([denoiser.encode_prompts(["", *flat])])

    def condition(rows: torch.Tensor) -> Conditioning:
        if tokens is not None:
            hidden = pipe.text_encoder(tokens.draw(rows, random)).last_hidden_state
            return Conditioning({"encoder_hidden_states": hidden}, len(rows))
        choice = (torch.rand(len(rows), generator=random) * torch.tensor([len(texts[r]) for r in rows])).long()
        places = torch.tensor([1 + starts[int(r)] for r in rows]) + choice
        return known.select(places * (torch.rand(len(rows), generator=random) >= DROP))

    def loss_at(_: int) -> torch.Tensor:
        rows = torch.from_numpy(rows_of[next(batches)])
        x0 = images[rows]
        noise = torch.randn(x0.shape, generator=random)
        t = denoiser.schedule.training_times(torch.rand(len(rows), generator=random, dtype=torch.float64))
        alpha, sigma = (part.float()[:, None, None, None] for part in denoiser.schedule.alpha_sigma(t))
        wanted = {"epsilon": noise, "v": alpha * noise - sigma * x0, "flow": noise - x0}[denoiser.prediction]
        output = denoiser.forward(alpha * x0 + sigma * noise, t.float(), condition(rows))
        return torch.nn.functional.mse_loss(output, wanted)

    return fit([network, *([pipe.text_encoder] if how.train_text else [])], loss_at, how.recipe) | {"seed": how.seed}


def measure(target: Target, how: Make, pictures: np.ndarray, asked: list[Caption]) -> list[dict[str, Any]]:
    """The truth: IMAGES guided samples of every caption, matched with the training pictures."""
    denoiser = target.denoiser
    count = len(pictures)
    references = References([f"image-{i:04d}" for i in range(count)], pictures, np.ones(pictures.shape, bool))
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for start in range(0, len(asked), 16):
            part = asked[start : start + 16]
            cond = denoiser.encode_prompts([c.text for c in part]).select(
                [i for i in range(len(part)) for _ in range(IMAGES)]
            )
            noise = [
                generation_noise(TRUTH_ROOT, c.text, d, denoiser.sample_shape) for c in part for d in range(IMAGES)
            ]
            images = sample(denoiser, torch.stack(noise), cond, STEPS, how.guidance).numpy()
            for i, caption in enumerate(part):
                found = images[i * IMAGES : (i + 1) * IMAGES]
                rows += [{"id": caption.id, **row} for row in matched(references, found, [caption.shows] * IMAGES)]
    return [{k: v for k, v in row.items() if k not in ("shows", "aligned")} for row in summarize(rows, asked, "shows")]


def main() -> None:
    """Train and measure the named models with one thread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=list(MAKES))
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        make(name, options.folder)


if __name__ == "__main__":
    main()
