"""Put the changes of LoRAs into a pipeline as adapters of peft, and hold what the layers then do against the files."""

from __future__ import annotations

import copy
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffmem.errors import ModelError
from diffmem.models.lora.changes import Change, Layers, factors, rows_of
from diffmem.models.lora.first_names import Part

TOLERANCE = 1e-3
"""Relative error of a layer's change against the file; twice the type's resolution where that is coarser."""


def layers_of(component: nn.Module, change: Change) -> Layers:
    """The layers of a change's place, without adapters around them."""
    return {part.layer: _base(component.get_submodule(part.layer)) for part in change.place.parts}


def _base(layer: Any) -> Any:
    return getattr(layer, "base_layer", layer)


class Installation:
    """The changes of all LoRAs of a pipeline, installed together and checked together."""

    def __init__(self, pipeline: Any, changes: Sequence[Change]) -> None:
        self.pipeline = pipeline
        self.changes = changes
        self._merged: dict[tuple[str, str, str], Tensor | None] = {}  # as they were before

    def install(self) -> None:
        """Adapters for weights of linear and convolutional layers; biases, norms and embeddings are changed in place."""
        adapters: dict[tuple[str, str], list[tuple[Change, Part]]] = defaultdict(list)
        for change in self.changes:
            for part in change.place.parts:
                layer = self._layer(change.place.component, part.layer)
                if change.on_weight and isinstance(layer, nn.Linear | nn.Conv2d):
                    dora = self._as_dora(change, part)
                    adapters[change.place.component, f"lora{change.lora}{'_dora' if dora else ''}"].append(
                        (change, part)
                    )
        for (component, name), pieces in adapters.items():
            self._add_adapter(self.pipeline.components[component], name, pieces)
        for component in {component for component, _ in adapters}:
            _activate(self.pipeline.components[component])
        for change in self.changes:
            for part in change.place.parts:
                self._merge(change, part)

    def _layer(self, component: str, layer: str) -> Any:
        return _base(self.pipeline.components[component].get_submodule(layer))

    def _as_dora(self, change: Change, part: Part) -> bool:
        """Whether peft's own DoRA does exactly this: magnitudes by rows, the whole change, no other LoRA in the layer."""
        t = change.entry.tensors
        if change.entry.kind != "LoRA" or "magnitude" not in t or "mid" in t or change.scale != 1:
            return False
        others = [c for c in self.changes if c is not change and c.place.component == change.place.component
                  and any(p.layer == part.layer for p in c.place.parts) and c.on_weight]  # fmt: skip
        return (
            not others and change.magnitude(t["up"].new_empty(t["up"].shape[0], t["down"].shape[1], device="meta"))[0]
        )

    def _add_adapter(self, component: nn.Module, name: str, pieces: Sequence[tuple[Change, Part]]) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        dora = name.endswith("_dora")
        made = {}
        for change, part in pieces:
            layers = layers_of(component, change)
            if dora:
                t, shape = change.entry.tensors, layers[part.layer].weight.shape
                up = rows_of(part, t["up"].float().flatten(1))
                made[part.layer] = (t["down"].float().reshape(-1, *shape[1:]), up, change.scaling)
            else:
                made[part.layer] = factors(change, part, layers)
        # Ranks and scalings are set below: peft looks them up by patterns, one search per pair of layers.
        config = LoraConfig(
            r=1, lora_alpha=1, target_modules="|".join(map(re.escape, made)), use_dora=dora, inference_mode=True
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are meant
            inject_adapter_in_model(config, component, adapter_name=name)
        for change, part in pieces:
            layer: Any = component.get_submodule(part.layer)
            down, up, scaling = made[part.layer]
            base = layer.base_layer.weight
            # DoRA's magnitudes are near the norms of whole rows: in half precision the change would drown in rounding.
            dtype = torch.float32 if dora else base.dtype
            layer.r[name], layer.lora_alpha[name], layer.scaling[name] = len(down), scaling * len(down), scaling
            for matrix, value in ((layer.lora_A[name], down), (layer.lora_B[name], up)):
                conv = isinstance(matrix, nn.Conv2d)
                value = value.reshape(*value.shape[:2], *matrix.weight.shape[2:])
                setattr(matrix, "out_channels" if conv else "out_features", value.shape[0])
                setattr(matrix, "in_channels" if conv else "in_features", value.shape[1])
                matrix.weight.data = value.to(base.device, dtype)
            if dora:
                held = layer.lora_magnitude_vector[name].weight
                value = rows_of(part, change.magnitude(_rows(change))[1])
                held.data = value.reshape(held.shape).to(base.device, dtype)

    def _merge(self, change: Change, part: Part) -> None:
        """Changes for which peft has no layer are added to the weights: norms, embeddings, biases."""
        layer = self._layer(change.place.component, part.layer)
        todo = [("bias", change.bias())]
        if change.on_weight and not isinstance(layer, nn.Linear | nn.Conv2d):
            layers = layers_of(self.pipeline.components[change.place.component], change)
            todo.append(("weight", change.weight(layers)))
        for name, value in todo:
            if value is None:
                continue
            held = getattr(layer, name, None)
            self._merged.setdefault(
                (change.place.component, part.layer, name), None if held is None else held.detach().clone()
            )
            added = rows_of(part, value).to(layer.weight.device)
            if held is None:
                layer.register_parameter(name, nn.Parameter(added.to(layer.weight.dtype), requires_grad=False))
            else:
                held.data = (held.detach().float() + added.reshape(held.shape)).to(held.dtype)

    def check(self) -> None:
        """Compare what each layer does now with what the files say.

        Each layer is given random inputs, in float64: (layer - layer without adapters)(x) against the change computed
        from the file's tensors. Cost: a few products with A and B for a LoRA, one of each changed weight for the rest.

        Raises:
            ModelError: a layer whose change differs by more than TOLERANCE.
            NothingChanges: a LoRA all of whose changes are zero.
        """
        wanted: dict[tuple[str, str, str], Tensor] = {}
        moves: dict[int, bool] = {change.lora: False for change in self.changes}
        for change in self.changes:
            for key, output in self._said(change):
                moves[change.lora] |= bool(output.abs().max() > 0)
                wanted[key] = wanted[key] + output if key in wanted else output
        still = [lora for lora, moved in moves.items() if not moved]
        if still:
            raise NothingChanges(still[0])
        for (component, layer, name), output in wanted.items():
            base = self._layer(component, layer)
            if (component, layer, name) in self._merged:
                held, before = getattr(base, name), self._merged[component, layer, name]
                done = (held.double() - (0 if before is None else before.double())).cpu()
            else:
                done = _done(self.pipeline.components[component].get_submodule(layer))
            error = _error(done, output.reshape(done.shape))
            if not error <= max(TOLERANCE, 2 * torch.finfo(base.weight.dtype).eps):
                raise ModelError(
                    f"After loading, the {name} of {component}.{layer} is changed otherwise than the file says (relative "
                    f"error {error:.2g}), and nothing is audited with a LoRA that is not whole. A model that is opened in "
                    "half precision may hold it in float32."
                )

    def _said(self, change: Change) -> Iterator[tuple[tuple[str, str, str], Tensor]]:
        """((component, layer, "weight" or "bias"), what the file's tensors say): of an adapter, its outputs on the probe."""
        component = change.place.component
        layers = layers_of(self.pipeline.components[component], change)
        bias = change.bias()
        whole = change.weight(layers) if change.on_weight and not change.plain() else None
        for part in change.place.parts:
            base = layers[part.layer]
            if change.plain():
                yield (component, part.layer, "weight"), _through(base, *factors(change, part, layers))
            elif whole is not None:
                value = rows_of(part, whole)
                adapted = isinstance(base, nn.Linear | nn.Conv2d)
                yield (component, part.layer, "weight"), _apply(base, value) if adapted else value.double()
            if bias is not None:
                yield (component, part.layer, "bias"), rows_of(part, bias).double()


class NothingChanges(Exception):
    """A LoRA all of whose changes are zero; its number is the argument."""


def _rows(change: Change) -> Tensor:
    t = change.entry.tensors
    return t["up"].new_empty((t["up"].shape[0], t["down"].shape[1]), device="meta")


def _activate(component: nn.Module) -> None:
    """All adapters of a component, in eval mode and without gradients."""
    from peft.tuners.lora import LoraLayer

    for layer in component.modules():
        if isinstance(layer, LoraLayer):
            layer.set_adapter([*layer.lora_A])
            for name, weight in layer.named_parameters():
                if "lora_" in name:
                    weight.requires_grad_(False)
    component.eval()  # new layers begin in training mode


def _probe(base: Any) -> Tensor:
    made = torch.Generator().manual_seed(0)
    if isinstance(base, nn.Conv2d):
        size = [2 * k for k in base.kernel_size]
        return torch.randn(2, base.in_channels, *size, generator=made, dtype=torch.float64)
    return torch.randn(4, base.in_features, generator=made, dtype=torch.float64)


def _apply(base: Any, change: Tensor) -> Tensor:
    """What a change of the weight does to the probe."""
    change, x = change.reshape(base.weight.shape).double().cpu(), _probe(base)
    if isinstance(base, nn.Conv2d):
        return nn.functional.conv2d(x, change, None, base.stride, base.padding, base.dilation, base.groups)
    return nn.functional.linear(x, change)


def _through(base: Any, down: Tensor, up: Tensor, scaling: float) -> Tensor:
    """What a LoRA does to the probe: scaling * up @ (down @ x)."""
    x, down, up = _probe(base), down.double().cpu(), scaling * up.double().cpu()
    if isinstance(base, nn.Conv2d):
        inner = nn.functional.conv2d(x, down, None, base.stride, base.padding, base.dilation, base.groups)
        return torch.einsum("or,nr...->no...", up, inner)
    return x @ down.T @ up.T


class _Silent(nn.Module):
    """In place of a base layer: zeros, which the adapters' outputs are added to."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = [base]  # hidden from the module's own layers

    def forward(self, x: Tensor) -> Tensor:
        base = self.base[0]
        if isinstance(base, nn.Linear):
            return x.new_zeros((*x.shape[:-1], base.out_features))
        settings = zip(x.shape[2:], base.padding, base.dilation, base.kernel_size, base.stride, strict=True)
        size = [(n + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for n, pad, dilation, k, stride in settings]
        return x.new_zeros((len(x), base.out_channels, *size))


def _done(layer: Any) -> Tensor:
    """What the adapters of a layer do to the probe."""
    base, x = layer.base_layer, _probe(layer.base_layer)
    if layer.lora_magnitude_vector:  # DoRA looks at the base's weight
        twin: Any = copy.deepcopy(layer)
    else:
        twin = copy.deepcopy(layer, {id(base): _Silent(base)})
    twin = twin.cpu().double()
    with torch.no_grad():
        with_adapters, without = twin(x), twin.base_layer(x)
    return torch.sub(with_adapters, without)


def _error(done: Tensor, wanted: Tensor) -> float:
    """Relative error; where nothing is wanted, whatever is done."""
    size, off = float(wanted.norm()), float((done - wanted).norm())
    return off / size if size else off
