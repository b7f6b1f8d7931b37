"""One sample of the training stream: everything random about it is a function of the seed and its place."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffmem.mitigation.embedding import continuous, with_embeddings
from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.model_image import convert, encode, model_image, to_pixels
from diffmem.randomness import gaussian, generator
from diffmem.training.captions import CaptionDraw
from diffmem.training.changes import mix as blend
from diffmem.training.changes import own_weight
from diffmem.training.data import TrainingSet
from diffmem.training.duplication import Order
from diffmem.training.objective import draw_time
from diffmem.training.plan import TrainPlan

KEPT = 4096
"""Encoded captions that are kept where the text encoder does not change."""
ENCODE_AT_ONCE = 32


class Latents:
    """x0 of every training image, encoded once (the mean of the autoencoder's posterior); mirrored ones too if asked."""

    def __init__(self, denoiser: Denoiser, data: TrainingSet, flip: bool) -> None:
        form = model_image(denoiser)
        parts: list[torch.Tensor] = []
        for start in range(0, len(data), ENCODE_AT_ONCE):
            batch = data.images[start : start + ENCODE_AT_ONCE]
            pixels = torch.stack([to_pixels(convert(image.image, form)[0]) for image in batch])
            both = [pixels, pixels.flip(-1)] if flip else [pixels]
            parts.append(torch.stack([encode(denoiser, p) for p in both], 1))
        self._x0 = torch.cat(parts)

    def __call__(self, image: int, mirrored: bool) -> torch.Tensor:
        """x0 [*sample_shape], float32, CPU."""
        return self._x0[image, int(mirrored)]


@dataclass(frozen=True)
class Batch:
    """Samples that go through the network together.

    Attributes:
        x0, noise: [B, *sample_shape], float32.
        t: times, [B], float64.
        cond: conditioning, B rows.
        unconditional: rows without a caption, [B].
        images: which images they show.
    """

    x0: torch.Tensor
    noise: torch.Tensor
    t: torch.Tensor
    cond: Conditioning
    unconditional: torch.Tensor
    images: tuple[int, ...]


class Samples:
    """The stream of training samples.

    Args:
        plan: what they are made of.
        denoiser: the model (its encoders).
        order: which image is at which place.
        latents: of the images.
        captions: of the images; None for a model without prompts.
    """

    def __init__(
        self, plan: TrainPlan, denoiser: Denoiser, order: Order, latents: Latents, captions: CaptionDraw | None
    ) -> None:
        self._plan, self._denoiser, self._order = plan, denoiser, order
        self.latents, self._captions = latents, captions
        self._frozen = plan.model.text_encoder == "frozen"
        self._kept: OrderedDict[str, Conditioning] = OrderedDict()

    def batch(self, places: Sequence[int]) -> Batch:
        """The samples at the given places of the stream."""
        seed, changes = self._plan.seed, self._plan.changes
        shape = self._denoiser.sample_shape
        images, x0, times, texts, mixed, own = [], [], [], [], [], []
        for place in places:
            image = self._order[place]
            random = generator(seed, "training", "sample", place)
            mirrored = bool(torch.rand(1, generator=random) < 0.5) and self._plan.data.flip
            images.append(image)
            x0.append(self.latents(image, mirrored))
            levels = self._plan.optimizer.times if changes.noise_levels == "as-planned" else changes.noise_levels
            times.append(draw_time(self._denoiser, levels, random, changes.zone))
            texts.append(self._captions(image, random) if self._captions is not None else None)
            if changes.embedding_mixing > 0 and self._captions is not None:
                other = int(torch.randint(self._order.size, (1,), generator=random))
                mixed.append(self._captions(other, random))
                own.append(own_weight(changes.embedding_mixing, random))
        cond = self._encode(texts)
        if mixed:
            cond = mix(cond, self._encode(mixed), torch.tensor(own))
        if changes.embedding_noise > 0:
            names = [("training", "embedding", place) for place in places]
            cond = add_noise(cond, changes.embedding_noise, seed, names)
        return Batch(
            torch.stack(x0),
            torch.stack([gaussian(shape, seed, "training", "noise", place) for place in places]),
            torch.tensor(times, dtype=torch.float64),
            cond,
            torch.tensor([text is None for text in texts]),
            tuple(images),
        )

    def _encode(self, texts: Sequence[str | None]) -> Conditioning:
        denoiser = self._denoiser
        if self._captions is None:
            return Conditioning({}, len(texts))
        if not self._frozen:  # the empty caption trains too
            return denoiser.encode_prompts([text or "" for text in texts])
        fresh = [text for text in dict.fromkeys(texts) if text is not None and text not in self._kept]
        with torch.no_grad():
            encoded = denoiser.encode_prompts(fresh) if fresh else None
            null = denoiser.null()
        rows = {text: encoded.select([i]) for i, text in enumerate(fresh)} if encoded is not None else {}
        found = [null if text is None else rows.get(text) or self._kept[text] for text in texts]
        self._kept.update(rows)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return Conditioning.cat(found)


def add_noise(cond: Conditioning, strength: float, seed: int, names: Sequence[tuple[str | int, ...]]) -> Conditioning:
    """GN: Gaussian noise of standard deviation `strength` on every element of the embeddings, named per row."""
    changed = {}
    for key, value in embeddings_of(cond).items():
        noise = torch.stack([gaussian(value.shape[1:], seed, *name, key) for name in names])
        changed[key] = value + strength * noise.to(value)
    return with_embeddings(cond, changed)


def mix(cond: Conditioning, other: Conditioning, own: torch.Tensor) -> Conditioning:
    """Embeddings own e + (1 - own) e', own [B] in [0, 1]."""
    with_those = embeddings_of(other)
    changed = {}
    for key, value in embeddings_of(cond).items():
        changed[key] = blend(value, with_those[key], own)
    return with_embeddings(cond, changed)


def embeddings_of(cond: Conditioning) -> dict[str, torch.Tensor]:
    """The tensors that embed the text, with their gradients."""
    return {name: cond.tensors[name] for name in continuous(cond)}
