"""Small random LoRA files in the formats of many trainers, and what each does to the weights, by its definition."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def rand(*shape):
    return torch.randn(*shape)


def linears(network, words=ATTENTION):
    return {n: m for n, m in network.named_modules() if isinstance(m, torch.nn.Linear) and n.endswith(words)}


def convs(network):
    return {
        n: m for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d) and n.endswith(("conv1", "conv_in"))
    }


def pair(layer, rank=2):
    """(down, up, up @ down) of a random LoRA for a layer, kernels included."""
    shape = layer.weight.shape
    down, up = rand(rank, *shape[1:]), rand(shape[0], rank)
    if len(shape) == 4:
        return down, up[:, :, None, None], torch.einsum("or,rikl->oikl", up, down)
    return down, up, up @ down


def write(tensors, file, **header):
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, file, metadata=header or None)
    return file


def change(layer):
    """What the adapters of a layer do to its weight, read off its outputs."""
    base = layer.get_base_layer()
    if isinstance(base, torch.nn.Conv2d):
        k, stride, pad = base.kernel_size[0], base.stride[0], base.padding[0]
        at = -(-pad // stride)  # the first output whose kernel lies on the input wholly
        start = at * stride - pad
        x = torch.zeros(base.in_channels * k * k, base.in_channels, start + k, start + k)
        x[:, :, start:, start:] = torch.eye(base.in_channels * k * k).reshape(-1, base.in_channels, k, k)
        with torch.no_grad():
            done = layer(x) - base(x)
        return done[:, :, at, at].T.reshape(base.weight.shape)
    x = torch.eye(base.in_features)
    with torch.no_grad():
        return (layer(x) - base(x)).T


def assert_changes(component, wanted, rtol=1e-3):
    """Exactly these layers of a component are adapted, each by this change of its weight."""
    adapted = {n: m for n, m in component.named_modules() if hasattr(m, "lora_A") and len(m.lora_A)}
    assert adapted.keys() == wanted.keys()
    for name, truth in wanted.items():
        done = change(adapted[name])
        assert (done - truth).norm() <= rtol * truth.norm(), name
