"""How much two aligned pictures prove that one is made from the other, pixel by pixel.

Normalised correlation alone is no evidence: two skies correlate perfectly. What counts is how many independent details
agree. In each of four bands of detail (differences of Gaussians, in brightness and two colour differences) the local
correlation rho of the two pictures stands for -log(1 - rho^2) / 2 nats per independent value, the information that one
Gaussian variable of this correlation has about the other; a band has as many independent values per pixel as its width
allows. Smooth parts have no detail beyond the noise of 8 bits and so give nothing; along a straight edge nothing new is
said, so coherent parts count less. A small charge per pixel takes away what unrelated pictures have by chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from diffmem.copies.alignment.fitting import blur, sample, size_of

_COLOURS = ((0.299, 0.587, 0.114), (0.5, -0.419, -0.081), (-0.169, -0.331, 0.5))
_WIDTHS = (0.7, 1.4, 2.8, 5.6)  # of the bands, in 1/32 of the side
_WINDOW = 2.5  # of the local correlation, in widths
_FLOOR = 3 * (0.7 / 255) ** 2  # variance of three colour planes that is taken for noise
_CEILING = 0.98
_CHARGE = 0.06  # nats per pixel
_COHERENT = 0.9
_CLOSE, _NEAR = 2.0, 0.2
_UNLIKE, _ALIKE = 0.5, 0.01  # root-mean-square differences of unrelated pictures, and of what storage leaves
_COARSE = 1  # band below which pictures are compared as they are


@dataclass(frozen=True)
class Evidence:
    """Of n aligned pairs.

    Attributes:
        total: [n] nats.
        area: [n] share of the other picture's pixels that are in the picture.
        similarity: [n] mean local correlation there, 0 without such pixels.
        where: [n, S, S] which pixels.
        closeness: [n] mean over the overlap of log(.5 / (difference + .01)), at least 0, of the colours without fine detail,
            times the larger of the two shares that it covers: what is left to tell smooth pictures apart.
    """

    total: Tensor
    area: Tensor
    similarity: Tensor
    where: Tensor
    closeness: Tensor


def weigh(picture: Tensor, others: Tensor, maps: Tensor, side: int) -> Evidence:
    """The evidence of pairs that were laid over each other.

    Args:
        picture: [3, S, S] in [0, 1].
        others: [n, 3, S, S].
        maps: [n, 2, 3] from places in the other picture to places in the picture.
        side: pixels a side that the pictures had before they were enlarged, if they were: interpolated pixels are no
            further evidence.
    """
    size = others.shape[-1]
    unit = max(size / 32, 0.86)
    turn = torch.tensor(_COLOURS, dtype=others.dtype)
    seen, inside = _seen(picture, maps, size)
    inside = inside[:, None]
    pair = torch.cat([torch.einsum("kc,nchw->nkhw", turn, planes) * inside for planes in (seen, others)], 1)
    total, agreeing, weights = torch.zeros_like(inside), torch.zeros_like(inside), torch.zeros_like(inside)
    share = min(1.0, side / size) ** 2
    for number, width in enumerate(width * unit for width in _WIDTHS):
        smooth = blur(pair, width) / (blur(inside, width) + 1e-6) * inside
        mine, theirs = torch.split(pair - smooth, 3, 1)
        pair = smooth
        moments = torch.cat(
            [(mine * theirs).sum(1, True), (mine * mine).sum(1, True), (theirs * theirs).sum(1, True), inside], 1
        )
        product, own, other, weight = torch.split(blur(moments, max(_WINDOW * width, 1.5 * unit)), 1, 1)
        floor = _FLOOR * weight.clamp(min=1e-3)
        correlation = product / ((own + floor) * (other + floor)).sqrt()
        values = share * min(1.0, 1 / ((1.3 if number == 0 else 2.2) * width) ** 2)
        gain = -0.5 * values * torch.log1p(-_CEILING * correlation.clamp(-1, 1) ** 2)
        total = total + gain * correlation.sign()
        detail = values * (own * other).sqrt()
        agreeing, weights = agreeing + detail * correlation, weights + detail
        if number == _COARSE:
            closeness = _closeness(pair[:, :3], pair[:, 3:], inside[:, 0], maps)
    total = (total * inside)[:, 0] * (1 - _COHERENT * _coherence(others, unit) ** 2)
    excess = (total - _CHARGE).clamp(min=0)
    # Smooth stretches between details that agree are taken to be copied with them.
    where = (blur((total > 2 * _CHARGE)[:, None].to(total.dtype), _CLOSE * unit)[:, 0] > _NEAR) & (inside[:, 0] > 0)
    correlation = (agreeing / weights.clamp(min=1e-12))[:, 0].clamp(0, 1)
    covered = where.sum((1, 2))
    similarity = (correlation * where).sum((1, 2)) / covered.clamp(min=1)
    return Evidence(excess.sum((1, 2)), covered / where[0].numel(), similarity, where, closeness)


def _closeness(mine: Tensor, theirs: Tensor, inside: Tensor, maps: Tensor) -> Tensor:
    count = inside.sum((1, 2)).clamp(min=1)
    apart = mine - theirs
    level = (apart[:, 0] * inside).sum((1, 2)) / count
    differences = apart.square().mean(1).sqrt(), (apart[:, 0] - level[:, None, None]).abs()
    likeness = (
        sum((torch.log(_UNLIKE / (one + _ALIKE)).clamp(min=0) for one in differences), torch.zeros_like(inside)) / 2
    )
    near = (likeness * inside).sum((1, 2))
    theirs_covered = count / inside[0].numel()
    mine_covered = (theirs_covered * size_of(maps)).clamp(max=1)
    return near / count * torch.maximum(theirs_covered, mine_covered)


def _seen(picture: Tensor, maps: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The picture at the other pictures' pixels; one that is reduced by that is blurred before it is sampled."""
    scale = size_of(maps).sqrt()
    levels = torch.stack([picture, *(blur(picture[None], sigma)[0] for sigma in (0.6, 1.0))])
    return sample(levels[(scale > 1.3).long() + (scale > 1.8).long()], maps, size)


def _coherence(others: Tensor, unit: float) -> Tensor:
    """[n, S, S] how much the gradients around a pixel point in one direction: 1 on a straight edge, 0 in a corner."""
    weights = torch.tensor(_COLOURS[0], dtype=others.dtype)
    light = blur(torch.einsum("c,nchw->nhw", weights, others)[:, None], 0.7 * max(unit, 1))
    right = functional.pad((light[..., 2:] - light[..., :-2]) / 2, (1, 1))
    down = functional.pad((light[..., 2:, :] - light[..., :-2, :]) / 2, (0, 0, 1, 1))
    xx, yy, xy = blur(torch.cat([right * right, down * down, right * down], 1), 2.5 * unit).unbind(1)
    return ((xx - yy) ** 2 + 4 * xy**2).sqrt() / (xx + yy + 1e-6)
