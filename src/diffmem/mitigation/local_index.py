"""A training set in the model's own space, to be asked during generation how near a prediction comes to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffmem.data.images import as_images
from diffmem.errors import DataError
from diffmem.models.denoiser import Denoiser


class LocalIndex:
    """Distinct samples x0 and their captions; near-duplicates count once, so that an image is no rival of itself.

    Args:
        x0: [N, ...], float32, CPU.
        captions: [N], None where there is none.
        same: samples closer than this part of the median distance to the mean sample are the same image.
    """

    def __init__(self, x0: torch.Tensor, captions: Sequence[str | None] | None = None, same: float = 0.1) -> None:
        flat = x0.detach().float().cpu().flatten(1)
        cut = same * float((flat - flat.mean(0)).norm(dim=1).median())
        kept: list[int] = []
        for row in range(len(flat)):
            if not kept or float((flat[kept] - flat[row]).norm(dim=1).min()) > cut:
                kept.append(row)
        if len(kept) < 3:
            raise DataError(f"A local index needs 3 distinct images to compare with, but was given {len(kept)}.")
        self.x0 = flat[kept]
        given = captions if captions is not None else [None] * len(flat)
        self.captions = [given[row] for row in kept]

    @classmethod
    def from_images(cls, images: Any, denoiser: Denoiser, batch: int = 32) -> LocalIndex:
        """Encode a set of images (whatever `load_images` takes) with the model's own encoder.

        Args:
            images: the training images, or those to protect.
            denoiser: the model.
            batch: images encoded at once.

        Raises:
            DataError: fewer than three distinct images can be decoded.
        """
        with torch.no_grad():  # what the decoder gives is what the encoder takes
            form = denoiser.decode(torch.zeros(1, *denoiser.sample_shape)).shape[1:]
        found, captions = [], []
        for items in as_images(images).batches(batch):
            read = [(item.image, item.caption) for item in items if item.image is not None]
            captions += [caption for _, caption in read]
            if read:
                pixels = torch.stack([_pixels(image, form) for image, _ in read])
                with torch.no_grad():
                    found.append(denoiser.encode_images(pixels).float().cpu())
        if not found:
            raise DataError("None of the images of the local index can be decoded.")
        return cls(torch.cat(found), captions)

    def similarity(
        self, x0: torch.Tensor, neighbours: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
        """How near each sample comes to its nearest image, 1 - d1 / mean(d2 ... d_{k+1}), d the Euclidean distance.

        1 is a copy, 0 is no nearer than to others. The normalised distance of Carlini et al. (2023), turned round.

        Args:
            x0: [B, ...].
            neighbours: k, cut to what there is.

        Returns:
            (similarity [B], its gradient with respect to x0 [B, ...], the mean distance d2 ... d_{k+1} [B], nearest [B]).
            No network evaluation.
        """
        known = self.x0.to(x0.device)
        with torch.inference_mode(False), torch.enable_grad():
            at = x0.detach().clone().float().requires_grad_()
            distances = torch.cdist(at.flatten(1), known, compute_mode="donot_use_mm_for_euclid_dist")
            found = distances.topk(min(neighbours + 1, len(known)), largest=False)
            rivals = found.values[:, 1:].mean(1)
            similarity = 1 - found.values[:, 0] / rivals
            gradient = torch.autograd.grad(similarity.sum(), at)[0]
        return similarity.detach(), gradient, rivals.detach(), found.indices[:, 0].tolist()


def _pixels(image: Image.Image, form: Sequence[int]) -> torch.Tensor:
    """An image in the model's size and mode, [C, H, W] in [-1, 1]."""
    channels, height, width = form
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    array = np.asarray(image, np.float32) / 127.5 - 1
    return torch.from_numpy(array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0).copy())
