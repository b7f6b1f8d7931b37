"""Loaders of two networks that others trained, as a user would write them for `diffmem audit ./networks.py:vit ...`.

The weights are data of the sources named in them and no part of this project; ZOO names the folder that holds them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from diffmem import Target
from diffmem.models.schedule import FlowSchedule

Tensors = Mapping[str, torch.Tensor]


def zoo() -> Path:
    """The folder with the weights and data (the environment variable ZOO)."""
    return Path(os.environ["ZOO"])


class ViT(torch.nn.Module):
    """A class-conditional transformer on 4 x 4 patches that predicts the clean digit; MIT, sofia-dominguezc/MNIST-diffusion."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = torch.nn.Conv2d(1, 64, 7, 7)
        self.pos_embed = torch.nn.Parameter(torch.zeros(1, 16, 64))
        self.y_encoder = torch.nn.Embedding(11, 128)
        layers = [torch.nn.TransformerEncoderLayer(64, 4, 256, 0.0, "gelu", batch_first=True) for _ in range(4)]
        self.transformer = torch.nn.ModuleList(layers)
        self.unpatch = torch.nn.ConvTranspose2d(64, 1, 7, 7)

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """The clean digits in [0, 1] from x = t x0 + (1 - t) eps."""
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
        angles = t[:, None] * torch.exp(-torch.log(torch.tensor(1e4)) * torch.arange(64, device=t.device) / 63)
        time = torch.cat([angles.sin(), angles.cos()], 1).view(-1, 2, 64)
        tokens = torch.cat([tokens, time, self.y_encoder(label).view(-1, 2, 64)], 1)
        for layer in self.transformer:
            tokens = layer(tokens)
        found: torch.Tensor = self.unpatch(tokens[:, :-4].transpose(1, 2).reshape(-1, 64, 4, 4))
        return found


class Block(torch.nn.Module):
    """Convolution, normalisation over the picture, GELU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(before, after, 7, padding=3), torch.nn.LayerNorm((28, 28)), torch.nn.GELU()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As said."""
        found: torch.Tensor = self.net(x)
        return found


class CNN(torch.nn.Module):
    """An unconditional network that predicts the noise; MIT, james-hughes1/diffusion-mnist."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [Block(1, 16), Block(16, 32), Block(32, 32), Block(32, 16)]
        self.blocks = torch.nn.ModuleList([*blocks, torch.nn.Conv2d(16, 1, 3, padding=1)])
        sizes = [(32, 128), (128, 128), (128, 128), (128, 16)]
        parts = [part for pair in sizes for part in (torch.nn.Linear(*pair), torch.nn.GELU())]
        self.time_embed = torch.nn.Sequential(*parts[:-1])
        self.register_buffer("frequencies", torch.zeros(16))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The noise in x, t in [0, 1]."""
        angles = t[:, None] * self.frequencies
        time = self.time_embed(torch.cat([angles.sin(), angles.cos() - 1], 1))[:, :, None, None]
        x = self.blocks[0](x) + time
        for block in self.blocks[1:]:
            x = block(x)
        return x


def vit(**declared: Any) -> Target:
    """The ViT; `declared` replaces what is right (the self-check's wrong declarations)."""
    network = ViT().eval()
    network.load_state_dict(load_file(zoo() / "sofia_mnist_vit_flow.safetensors"))
    right: dict[str, Any] = {
        "prediction": "x0", "schedule": FlowSchedule(1.0, reversed=True), "pixel_range": (0, 1), "classes": 10, "null": 10,
    }  # fmt: skip
    return Target.from_callable(
        lambda x, t, cond: network(x, t, cond["label"]), (1, 28, 28), **(right | declared), name="sofia ViT"
    )


def cnn(epoch: str = "400", reverse: bool = False, factor: float = 1.0, **declared: Any) -> Target:
    """The CNN after so many epochs; `declared` as in `vit`, `reverse` and `factor` give it a wrong time."""
    tensors = load_file(zoo() / f"hughes_mnist_ddpm_epoch{epoch}.safetensors")
    network = CNN().eval()
    network.load_state_dict({k.removeprefix("gt."): v for k, v in tensors.items() if k.startswith("gt.")})
    right: dict[str, Any] = {"prediction": "epsilon", "schedule": tensors["alpha_t"], "pixel_range": (-0.5, 0.5)}
    return Target.from_callable(
        lambda x, t, cond: network(x, factor * (1 - t / 1000 if reverse else t / 1000)),
        (1, 28, 28),
        **(right | declared),
        name=f"hughes CNN, epoch {epoch}",
    )
