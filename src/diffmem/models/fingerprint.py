"""What identifies a model: a hash over its weights, configs and classes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from diffmem.models.denoiser import Denoiser
from diffmem.randomness import gaussian


def pipeline_fingerprint(pipeline: Any, components: Mapping[str, Any] | None = None) -> str:
    """blake2b-128 over every component: weights (name, type, shape, bytes), config, class, tokenizer vocabulary.

    Args:
        pipeline: a diffusers pipeline.
        components: to take in place of its own.
    """
    digest = hashlib.blake2b(type(pipeline).__name__.encode(), digest_size=16)
    for name, part in sorted((pipeline.components if components is None else components).items()):
        if part is None:
            continue
        digest.update(f"\n{name}:{type(part).__name__}".encode())
        if isinstance(part, torch.nn.Module):
            _weights(digest, part)
        config = getattr(part, "config", None)
        if config is not None:
            digest.update(_public(dict(config if isinstance(config, dict) else config.to_dict())))
        if hasattr(part, "get_vocab"):
            digest.update(json.dumps(sorted(part.get_vocab().items())).encode())
    return digest.hexdigest()


def _weights(digest: Any, module: torch.nn.Module) -> None:
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    for name, layer in sorted(module.named_modules()):
        scaling = getattr(layer, "scaling", None)  # of peft's layers: alpha / r, which is in no tensor
        if isinstance(scaling, dict) and scaling:
            active = [a for a in layer.active_adapters if a in scaling]
            digest.update(f"{name}|{sorted((a, scaling[a]) for a in active)}".encode())


def _public(config: dict[str, Any]) -> bytes:
    """A config without the entries that differ between machines and library versions (paths, `_diffusers_version`)."""
    kept = {k: v for k, v in config.items() if not k.startswith("_") and k not in {"transformers_version", "dtype"}}
    return json.dumps(kept, sort_keys=True, default=str).encode()


def probe_fingerprint(denoiser: Denoiser) -> str:
    """A fingerprint of a model without weights to read: its outputs on fixed noise, to four digits. Cost: 2 NFE."""
    declared = f"{denoiser.prediction}{denoiser.sample_shape}"
    pixel_range = getattr(denoiser, "pixel_range", (-1.0, 1.0))
    declared += "" if pixel_range == (-1.0, 1.0) else str(pixel_range)
    digest = hashlib.blake2b(declared.encode(), digest_size=16)
    x = gaussian((1, *denoiser.sample_shape), 0, "fingerprint")
    times = denoiser.schedule.sampling_times(2)
    for t in times:
        with torch.no_grad():
            output = denoiser.predict(x, t, denoiser.any_conditioning())
        digest.update("".join(f"{float(v):.3e}" for v in output.reshape(-1)).encode())
    return digest.hexdigest()
