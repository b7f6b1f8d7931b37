"""Places moved to sub-pixel accuracy: an affine map for each, by Gauss-Newton steps on locally normalised brightness.

At every step each pixel counts by how well its surroundings correlate already, so that what was replaced, covered or cut
off does not pull; brightness and contrast are compared with those of the surroundings only.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

_STEPS = 4
_VARIANCE = (1 / 255) ** 2
_MOST, _AWAY = 0.12, 0.5


def fit(picture: Tensor, others: Tensor, matrices: Tensor) -> Tensor:
    """Fitted maps [n, 2, 3], from places in the other picture to places in the picture.

    Args:
        picture: brightness [S, S].
        others: brightness [n, S, S].
        matrices: where to begin, [n, 2, 3]; a map that leaves its beginning far behind is given back as it was.
    """
    maps = matrices
    for level in (2, 1):
        side = len(picture) // level
        own, theirs = (blur(planes, 0.5 * level) for planes in (picture[None, None], others[:, None]))
        if level > 1:
            own, theirs = functional.avg_pool2d(own, level), functional.avg_pool2d(theirs, level)
        right = functional.pad((own[..., 2:] - own[..., :-2]) / 2, (1, 1))
        down = functional.pad((own[..., 2:, :] - own[..., :-2, :]) / 2, (0, 0, 1, 1))
        seen = torch.cat([own, right, down], 1).expand(len(maps), -1, -1, -1)
        for _ in range(_STEPS):
            maps = maps + _step(seen, theirs[:, 0], maps, side)
    size, before = size_of(maps), size_of(matrices)
    lost = ((maps - matrices).abs().flatten(1).amax(1) > _AWAY) | (size < before / 2) | (size > before * 2)
    return torch.where(lost[:, None, None], matrices, maps)


def sample(planes: Tensor, maps: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """What lies at each pixel of the other picture: planes [n, c, side, side], and whether it is inside [n, side, side]."""
    grid = functional.affine_grid(maps, [len(maps), 1, side, side], align_corners=False)
    seen = functional.grid_sample(planes, grid, padding_mode="border", align_corners=False)
    return seen, (grid.abs() < 1).all(-1).to(planes.dtype)


def blur(planes: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of planes [n, c, h, w]; outside is 0."""
    # As two matrix products: on planes this small, ten times as fast as a convolution.
    height, width = planes.shape[-2:]
    return _kernel(height, sigma) @ planes @ _kernel(width, sigma)


@lru_cache(maxsize=256)
def _kernel(size: int, sigma: float) -> Tensor:
    """[size, size] symmetric matrix of a Gaussian that sums to 1 and is cut off at 2.5 sigma."""
    at = torch.arange(size, dtype=torch.float32)
    apart = (at[:, None] - at[None]).abs()
    reach = max(1, round(2.5 * sigma + 0.5))
    weights = torch.exp(-(apart**2) / (2 * sigma**2)) * (apart <= reach)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32)
    whole: Tensor = torch.exp(-(steps**2) / (2 * sigma**2)).sum()
    return weights / whole


def _step(seen: Tensor, other: Tensor, maps: Tensor, side: int) -> Tensor:
    """Change [n, 2, 3] of the maps that makes the weighted squared difference smallest, to first order."""
    planes, inside = sample(seen, maps, side)
    mine, right, down = planes[:, 0], planes[:, 1] * side / 2, planes[:, 2] * side / 2
    moments = torch.stack([mine, other, mine * mine, other * other, mine * other, torch.ones_like(mine)], 1)
    near = blur(moments * inside[:, None], side / 12)
    mean, others, square, squares, product, weight = near.unbind(1)
    weight = weight.clamp(min=1e-4)
    mean, others = mean / weight, others / weight
    variance = (square / weight - mean**2).clamp(min=0) + _VARIANCE
    variances = (squares / weight - others**2).clamp(min=0) + _VARIANCE
    correlation = (product / weight - mean * others) / (variance * variances).sqrt()
    gain = (variances / variance).sqrt().clamp(0.2, 5)
    counted = inside * correlation.clamp(0, 1) ** 3
    error = (other - others) - gain * (mine - mean)
    at = (torch.arange(side, dtype=planes.dtype) + 0.5) * 2 / side - 1
    y, x = torch.meshgrid(at, at, indexing="ij")
    slopes = torch.stack([right * x, right * y, right, down * x, down * y, down], -1) * gain[..., None]
    slopes, counted = slopes.reshape(len(maps), -1, 6), counted.reshape(len(maps), -1, 1)
    weighted = (slopes * counted).transpose(1, 2)
    normal = weighted @ slopes
    firm = normal.diagonal(dim1=1, dim2=2).amax(1) * 1e-3 + 1e-6
    normal = normal + torch.eye(6, dtype=planes.dtype) * firm[:, None, None]
    change: Tensor = torch.linalg.solve(normal, weighted @ error.reshape(len(maps), -1, 1))
    return change.reshape(-1, 2, 3).nan_to_num().clamp(-_MOST, _MOST)


def size_of(maps: Tensor) -> Tensor:
    """[n] by how much maps [n, 2, 3] enlarge areas."""
    return (maps[:, 0, 0] * maps[:, 1, 1] - maps[:, 0, 1] * maps[:, 1, 0]).abs()
