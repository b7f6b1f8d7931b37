"""What an entry of a LoRA file does to a layer's weight.

LoRA: alpha/r * up @ down [Hu et al. 2022], with sd-scripts' inner kernel `mid` between them (CP decomposition).
LoHa: (w1_a @ w1_b) * (w2_a @ w2_b), LoKr: kron(w1, w2), both times alpha/r [LyCORIS, Yeh et al. 2024, eqs. 2 and 4].
DoRA: W' = m * V / |V| with V = W + the change above, so the change is W' - W [Liu et al. 2024, eq. 5].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffmem.errors import ModelError
from diffmem.models.lora.entries import Entry
from diffmem.models.lora.first_names import Part
from diffmem.models.lora.names import Place

Layers = dict[str, Any]
"""Layers by name, as they were before any LoRA."""


@dataclass
class Change:
    """One entry, where it goes, and how strongly.

    Attributes:
        entry, place: what and where.
        scaling: alpha / r.
        scale: what the user multiplies the whole change with.
        lora: number of the LoRA among those that are loaded.
    """

    entry: Entry
    place: Place
    scaling: float
    scale: float = 1.0
    lora: int = 0

    @property
    def on_weight(self) -> bool:
        """Whether it changes a weight (a difference may be of the bias alone)."""
        return self.entry.kind != "difference" or "diff" in self.entry.tensors

    def plain(self) -> bool:
        """Whether it is a LoRA without magnitudes."""
        return self.entry.kind == "LoRA" and "magnitude" not in self.entry.tensors

    def weight(self, layers: Layers) -> Tensor:
        """The change of the weight of its layers, stacked by rows as in the file, in float32 [rows, in, ...].

        Args:
            layers: the layers of its place as they were before any LoRA.
        """
        before = stacked(self.place.parts, layers)
        change: Tensor = matrix(self.entry).mul_(self.scaling).reshape(before.shape)
        if "magnitude" in self.entry.tensors:
            base = before.float()
            whole = base + change
            along_rows, magnitude = self.magnitude(before)
            dims = [d for d in range(whole.ndim) if d != (0 if along_rows else 1)]
            norm = torch.linalg.vector_norm(whole, dim=dims, keepdim=True)
            change = whole * (magnitude.float().reshape(norm.shape) / norm) - base
        return change.mul_(self.scale)

    def magnitude(self, weight: Tensor) -> tuple[bool, Tensor]:
        """DoRA's m, and whether it has one value per row of the weight (else one per column).

        peft and LyCORIS' wd_on_out keep one per output, LyCORIS without it one per input.
        """
        m, key = self.entry.tensors["magnitude"], self.entry.keys["magnitude"]
        rows, columns = int(weight.shape[0]), int(weight.shape[1])
        if m.numel() == rows and (m.ndim == 1 or m.shape[0] == rows or "lora_magnitude_vector" in key):
            return True, m.reshape(-1)
        if m.numel() == columns and m.ndim > 1 and m.shape[0] == 1:
            return False, m.reshape(-1)
        raise ModelError(
            f"{key} has the shape {_shape(m)}; expected one magnitude for each of {rows} outputs or {columns} inputs."
        )

    def bias(self) -> Tensor | None:
        """The change of the bias, in float32, or None."""
        t = self.entry.tensors
        found = [t["bias_diff"].float()] if "bias_diff" in t else []
        if "up_bias" in t:
            found.append(self.scaling * t["up_bias"].float())
        return torch.stack(found).sum(0).mul_(self.scale) if found else None


def stacked(parts: tuple[Part, ...], layers: Layers) -> Tensor:
    """The weights that an entry counts as one, in the order of its rows."""
    weights: list[Tensor] = [layers[part.layer].weight.detach() for part in parts]
    if len(parts) == 1 and parts[0].rows is None:
        return weights[0]
    rows = sum(stop - start for part in parts for start, stop in part.rows or ())
    whole = weights[0].new_empty((rows, *weights[0].shape[1:]))
    for part, weight in zip(parts, weights, strict=True):
        at = 0
        for start, stop in part.rows or ():
            whole[start:stop] = weight[at : at + stop - start]
            at += stop - start
    return whole


def rows_of(part: Part, whole: Tensor) -> Tensor:
    """The part's rows of what speaks of all rows."""
    if part.rows is None:
        return whole
    return torch.cat([whole[start:stop] for start, stop in part.rows])


def matrix(entry: Entry) -> Tensor:
    """The change without alpha / r and magnitudes, as [rows, everything else], in float32."""
    t = {role: value.float() for role, value in entry.tensors.items() if role not in ("alpha", "magnitude")}
    if entry.kind == "LoRA":
        up, down = t["up"].flatten(1), t["down"]
        if "mid" in t:
            down = torch.einsum("pq...,qi->pi...", t["mid"], down.flatten(1))
        return up @ down.flatten(1)
    if entry.kind == "LoHa":
        return (_hadamard(t, "1") * _hadamard(t, "2")).flatten(1)
    if entry.kind == "LoKr":
        one, two = _kronecker(t, "1"), _kronecker(t, "2")
        one = one.reshape(*one.shape, *(1,) * (two.ndim - one.ndim))
        return torch.kron(one.contiguous(), two.contiguous()).flatten(1)
    if entry.kind == "embedding LoRA":
        return (t["embedding_up"] @ t["embedding_down"]).T
    return t["diff"].clone()


def _hadamard(t: dict[str, Tensor], n: str) -> Tensor:
    a, b = t[f"hada_w{n}_a"], t[f"hada_w{n}_b"]
    if f"hada_t{n}" in t:
        return torch.einsum("ij...,jr,ip->pr...", t[f"hada_t{n}"], b, a)
    return a @ b


def _kronecker(t: dict[str, Tensor], n: str) -> Tensor:
    if f"lokr_w{n}" in t:
        return t[f"lokr_w{n}"]
    a, b = t[f"lokr_w{n}_a"], t[f"lokr_w{n}_b"]
    if n == "2" and "lokr_t2" in t:
        return torch.einsum("ij...,ip,jr->pr...", t["lokr_t2"], a, b)
    return a @ b


def factors(change: Change, part: Part, layers: Layers) -> tuple[Tensor, Tensor, float]:
    """The change of one layer as a LoRA, exactly: (down [r, in, ...], up [rows, r], scaling), in float32.

    A LoRA stays as it is. A LoHa without kernels of its own is a LoRA of rank r1 * r2 by the row-wise Khatri-Rao
    product, where that is below full rank; everything else is its full matrix times the identity.
    """
    shape = layers[part.layer].weight.shape
    t = change.entry.tensors
    if change.plain():
        down = t["down"].float()
        if "mid" in t:
            down = torch.einsum("pq...,qi->pi...", t["mid"].float(), down.flatten(1))
        up = rows_of(part, t["up"].float().flatten(1))
        return down.reshape(-1, *shape[1:]), up, change.scaling * change.scale
    full = min(shape[0], shape[1:].numel())
    if change.entry.kind == "LoHa" and "magnitude" not in t and "hada_t1" not in t:
        r1, r2 = int(t["hada_w1_b"].shape[0]), int(t["hada_w2_b"].shape[0])
        if r1 * r2 < full:
            up = torch.einsum("oi,oj->oij", t["hada_w1_a"].float(), t["hada_w2_a"].float()).flatten(1)
            down = torch.einsum("ix,jx->ijx", t["hada_w1_b"].float().flatten(1), t["hada_w2_b"].float().flatten(1))
            return down.reshape(-1, *shape[1:]), rows_of(part, up), change.scaling * change.scale
    whole = rows_of(part, change.weight(layers)).reshape(shape)
    if full == shape[0] or whole.ndim > 2:
        return whole, torch.eye(shape[0]), 1.0
    return torch.eye(shape[1]), whole, 1.0


def same_change(one: Change, other: Change) -> bool:
    """Whether two changes do the same to the layers that they share (not known of magnitudes and biases: no)."""
    if any({"magnitude", "bias_diff", "up_bias"} & c.entry.tensors.keys() for c in (one, other)):
        return False
    wholes = [matrix(c.entry) * c.scaling for c in (one, other)]
    for part in one.place.parts:
        for twin in other.place.parts:
            if part.layer == twin.layer:
                a, b = rows_of(part, wholes[0]), rows_of(twin, wholes[1])
                if a.shape != b.shape or (a - b).norm() > 1e-4 * b.norm():
                    return False
    return True


def check_shapes(change: Change, layers: Layers, where: str) -> str | None:
    """A sentence where an entry does not fit its layers."""
    t, parts = change.entry.tensors, change.place.parts
    weight = stacked(parts, layers)
    names = " + ".join(part.layer for part in parts)
    bias = change.entry.tensors.get("bias_diff", change.entry.tensors.get("up_bias"))
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        return (
            f"{change.entry.layer} changes a bias of shape {_shape(bias)}, and {where}'s {names} has {weight.shape[0]}"
        )
    if not change.on_weight:
        return None
    broken = _inner_shapes(change.entry)
    if broken:
        return broken
    made = _made_shape(change.entry)
    if made[0] != weight.shape[0] or made.numel() != weight.numel() or not _same(made, weight.shape):
        return (
            f"{change.entry.layer} is a change of shape {tuple(made)}, and the weight of {where}'s {names} has "
            f"{tuple(weight.shape)}"
        )
    if change.entry.kind == "LoRA" and weight.ndim < 2:
        return f"{change.entry.layer} is a LoRA, and {where}'s {names} has no matrix"
    if "magnitude" in t:
        change.magnitude(weight)
    return None


def _same(made: torch.Size, weight: torch.Size) -> bool:
    """Equal shapes, up to kernels of 1x1 and to kernels that the file keeps flat."""
    return len(made) == 2 or [n for n in made if n > 1] == [n for n in weight if n > 1]


def _inner_shapes(entry: Entry) -> str | None:
    t = entry.tensors
    pairs = {"LoRA": [("down", "up")], "LoHa": [("hada_w1_b", "hada_w1_a"), ("hada_w2_b", "hada_w2_a")],
             "LoKr": [("lokr_w1_b", "lokr_w1_a"), ("lokr_w2_b", "lokr_w2_a")],
             "embedding LoRA": [("embedding_down", "embedding_up")]}  # fmt: skip
    for down, up in pairs.get(entry.kind, []):
        if down not in t:
            continue
        if t[down].ndim < 2 or t[up].ndim < 2:
            return f"{entry.keys[down]} and {entry.keys[up]} are no matrices ({_shape(t[down])} and {_shape(t[up])})"
        tucker = "lokr_t2" in t and down == "lokr_w2_b", "hada_t1" in t
        inner = int(t[up].shape[0 if any(tucker) else 1])
        if "mid" in t:
            if tuple(t["mid"].shape[:2]) != (inner, t[down].shape[0]):
                return f"{entry.keys['mid']} has the shape {_shape(t['mid'])}, between ranks {inner} and {t[down].shape[0]}"
        elif not any(tucker) and inner != t[down].shape[0]:
            return f"{entry.keys[down]} has the rank {t[down].shape[0]} and {entry.keys[up]} the rank {inner}"
    if entry.kind == "LoRA" and t["up"].shape[2:].numel() != 1:
        return f"{entry.keys['up']} has a kernel of its own ({_shape(t['up'])})"
    return None


def _made_shape(entry: Entry) -> torch.Size:
    """The shape of the change that an entry makes, without making it."""
    meta = {role: torch.empty(value.shape, device="meta") for role, value in entry.tensors.items()}
    if entry.kind == "LoRA":
        kernel = (meta["mid"] if "mid" in meta else meta["down"]).shape[2:]
        return torch.Size((meta["up"].shape[0], meta["down"].shape[1], *kernel))
    try:
        if entry.kind == "LoHa" and "hada_t1" in meta:
            return _hadamard(meta, "1").shape
        if entry.kind == "LoKr":
            one, two = _kronecker(meta, "1"), _kronecker(meta, "2")
            inner = (one.shape[k] * two.shape[k] for k in (0, 1))
            return torch.Size((*inner, *two.shape[2:]))
        return matrix(Entry(entry.layer, tensors=meta, keys=entry.keys, kind=entry.kind)).shape
    except RuntimeError as problem:
        raise ModelError(
            f"The {entry.kind} of {entry.layer} does not multiply: {str(problem).splitlines()[0]}."
        ) from problem


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.shape)
