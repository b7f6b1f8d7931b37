"""Where parts of a picture may lie in other pictures: blocks of it, looked for by normalised correlation.

The picture is seen mirrored or not, turned, and at several sizes (`POSES`). Of each such sight a few blocks are looked for
at every place of the other picture; places on which several blocks agree add up. Brightness, contrast and a brightness
gradient play no part, and blocks that lie outside of the other picture cost nothing, so crops and pastes are found too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Pixels = NDArray[np.float32]
Matrix = NDArray[np.float64]

SIDE = 32
"""Pixels a side that pictures are brought to for the search."""
_SMALL = 16
_LEVEL = (1 / 255) ** 2  # variance of the noise that a flat block is taken to have
_ANGLES: tuple[tuple[float, tuple[float, ...]], ...] = (
    (0, (0.5, 0.62, 0.75, 0.88, 1, 1.15, 1.35, 1.65, 2.1)), (12, (0.9, 1.1)), (-12, (0.9, 1.1)), (22, (1.05,)),
    (-22, (1.05,)), (90, (1,)), (180, (1,)), (270, (1,)),
)  # fmt: skip


@dataclass(frozen=True)
class Pose:
    """How the picture is seen: mirrored, turned by degrees, and with how much of the other picture's size."""

    mirrored: bool
    angle: float
    size: float

    def matrix(self) -> Matrix:
        """[2, 2] from places in the other picture, relative to this one's centre, to places in this one; sides are 2 long."""
        turn = np.deg2rad(self.angle)
        found = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) / self.size
        if self.mirrored:
            found[0] *= -1
        return found


@dataclass(frozen=True)
class Place:
    """One place of the picture in a candidate.

    Attributes:
        candidate: its position.
        matrix: [2, 3] from places in the candidate to places in the picture, both in [−1, 1].
        support: how much the blocks that agree on it correlate.
    """

    candidate: int
    matrix: Matrix
    support: float


@dataclass(frozen=True)
class _Search:
    """A set of blocks to look for: `pose` and `offset` (x, y, from the picture's centre, pixels) of each."""

    block: int
    poses: tuple[Pose, ...]
    pose: NDArray[np.int64]
    offset: NDArray[np.int64]
    grid: torch.Tensor
    planes: Pixels
    reach: int | None
    bias: float

    @classmethod
    def build(cls, block: int, poses: tuple[Pose, ...], centres: object, reach: int | None, bias: float) -> _Search:
        """Args: centres: pose -> (x, y) of each block's centre, in half sides. Others as the attributes."""
        inside = (np.arange(block) + 0.5 - block / 2) * 2 / SIDE
        y, x = np.meshgrid(inside, inside, indexing="ij")
        numbers, offsets, grids = [], [], []
        for number, pose in enumerate(poses):
            for centre in centres(pose):  # type: ignore[operator]
                at = np.round(np.asarray(centre) * SIDE / 2).astype(np.int64)
                places = np.stack([x + at[0] * 2 / SIDE, y + at[1] * 2 / SIDE], -1) @ pose.matrix().T
                numbers.append(number)
                offsets.append(at)
                grids.append(places)
        ramp = np.linspace(-1, 1, block)
        flat = np.stack([np.ones((block, block)), *np.meshgrid(ramp, ramp)]).reshape(3, -1)
        return cls(
            block, poses, np.array(numbers), np.array(offsets), torch.tensor(np.array(grids), dtype=torch.float32),
            np.linalg.qr(flat.T)[0].astype(np.float32), reach, bias,
        )  # fmt: skip


@lru_cache
def _whole() -> _Search:
    """Large blocks, over all poses, anywhere."""
    poses = tuple(Pose(m, a, s) for m in (False, True) for a, sizes in _ANGLES for s in sizes)

    def centres(pose: Pose) -> list[tuple[float, float]]:
        span = max(0.0, pose.size - 0.5)
        if span < 0.1:
            return [(0, 0)]
        if pose.size <= 1.3:
            return [(0, 0), *((x * span, y * span) for x in (-1, 1) for y in (-1, 1))]
        # The part that is in the candidate may be anywhere in the picture, so no place of it may go without a block.
        steps = np.linspace(-span, span, 3 if pose.size < 1.5 else 4)
        return [(float(x), float(y)) for x in steps for y in steps]

    return _Search.build(16, poses, centres, None, 0.0)


@lru_cache
def _parts() -> _Search:
    """Small blocks near their own places, for pictures of which a large part in the middle was replaced."""
    poses = tuple(Pose(m, 0, s) for m in (False, True) for s in (0.9, 1, 1.12))
    steps = (-0.75, -0.25, 0.25, 0.75)
    return _Search.build(8, poses, lambda _: [(x, y) for x in steps for y in steps], 5, 0.25)


def places(picture: Pixels, others: Pixels, whole: int, parts: int) -> list[Place]:
    """The places of a picture in others that most of its blocks support.

    Args:
        picture: brightness [S, S] in [0, 1].
        others: brightness [C, S, S].
        whole: places to give from the search of large blocks; at most two, unlike ones, of each candidate.
        parts: places to give from the search of small blocks, one of each candidate.

    Cost: about 1 ms of a core per candidate.
    """
    fine, coarse = reduce(picture[None], 2 * SIDE), reduce(picture[None], SIDE)
    targets = reduce(others, SIDE)
    found = _chosen(_supports(_whole(), fine, coarse, targets), _whole().poses, whole, 2)
    return found + _chosen(_supports(_parts(), fine, coarse, targets), _parts().poses, parts, 1)


def wholes(picture: Pixels, others: Pixels, count: int) -> list[Place]:
    """The whole picture on whole others, mirrored or not, turned by right angles or not: the nearest by colours.

    Args:
        picture: [S, S, 3] in [0, 1].
        others: [C, S, S, 3].
        count: places to give, one of each candidate.
    """
    poses = [Pose(mirrored, angle, 1) for mirrored in (False, True) for angle in (0, 90, 180, 270)]
    maps = np.stack([np.concatenate([pose.matrix(), np.zeros((2, 1))], 1) for pose in poses])
    small = torch.from_numpy(np.ascontiguousarray(reduce(picture[None], _SMALL))).movedim(-1, 1)
    grid = functional.affine_grid(
        torch.tensor(maps, dtype=torch.float32), [len(poses), 3, _SMALL, _SMALL], align_corners=False
    )
    seen = functional.grid_sample(
        small.expand(len(poses), -1, -1, -1), grid, padding_mode="border", align_corners=False
    )
    flat = torch.from_numpy(np.ascontiguousarray(reduce(others, _SMALL))).movedim(-1, 1)
    difference = (seen[:, None] - flat[None]).square().mean(2).sqrt()
    # By the mean, which a change of all colours leaves in order, and by the logarithm's, which a part that was replaced does.
    by_mean, by_part = difference.square().mean((2, 3)).numpy(), torch.log(0.01 + difference).mean((2, 3)).numpy()
    found: dict[int, Place] = {}
    for apart, most in ((by_mean, (count + 1) // 2), (by_part, count)):
        for i in np.argsort(apart.min(0), kind="stable"):
            if len(found) < most:
                found.setdefault(int(i), Place(int(i), maps[apart[:, i].argmin()], 0.0))
    return list(found.values())


def reduce(pixels: Pixels, side: int) -> Pixels:
    """Pictures [n, S, S] or [n, S, S, 3] at another size, filtered before they are sampled."""
    if pixels.shape[1] == side:
        return pixels
    planes = torch.from_numpy(np.array(pixels if pixels.ndim == 4 else pixels[..., None])).movedim(-1, 1)
    small = functional.interpolate(planes, (side, side), mode="bilinear", antialias=True, align_corners=False)
    changed = np.ascontiguousarray(small.movedim(1, -1).numpy())
    return changed if pixels.ndim == 4 else changed[..., 0]


def _supports(search: _Search, fine: Pixels, coarse: Pixels, targets: Pixels) -> NDArray[np.float32]:
    """[poses, C, 3]: support of the best place, and where (y, x) the picture's centre then lies, pixels."""
    blocks = _blocks(search, fine, coarse)
    count, side = len(targets), SIDE - search.block + 1
    correlation = _correlations(search, blocks, targets).reshape(len(blocks), count, side, side)
    gain = _gain(correlation)
    if search.bias:
        gain -= np.float32(search.bias)
        np.maximum(gain, 0, out=gain)
    result = np.zeros((len(search.poses), count, 3), np.float32)
    for number in range(len(search.poses)):
        mine = np.flatnonzero(search.pose == number)
        offset = search.offset[mine]
        reach = int(np.abs(offset).max(initial=0))
        width = side + 2 * reach
        total = np.zeros((count, width, width), np.float32)
        for block, (x, y) in zip(mine, offset, strict=True):
            # A block centred at p puts the picture's centre at p − offset.
            total[:, reach - y : reach - y + side, reach - x : reach - x + side] += gain[block]
        middle, low = SIDE / 2 - search.block / 2 + reach, 0
        if search.reach is not None:
            low = round(middle) - search.reach
            total = total[:, low : low + 2 * search.reach + 1, low : low + 2 * search.reach + 1]
        flat = total.reshape(count, -1)
        best = flat.argmax(1)
        result[number, :, 0] = flat[np.arange(count), best]
        result[number, :, 1] = best // total.shape[2] + low - middle
        result[number, :, 2] = best % total.shape[2] + low - middle
    return result


def _gain(correlation: Pixels) -> Pixels:
    """−log(1 − .98 rho²) to 5 %, as a polynomial of rho², which takes a tenth of the time."""
    square = np.square(correlation)
    found = np.square(square)
    found *= np.float32(1.2)
    found += np.float32(0.5)
    found *= square
    found += np.float32(1)
    found *= square
    return found


def _blocks(search: _Search, fine: Pixels, coarse: Pixels) -> Pixels:
    """The picture's blocks [T, block²], without mean and gradient, at length 1 (flat ones shorter)."""
    blocks = np.empty((len(search.pose), search.block**2), np.float32)
    shrinks = np.array([search.poses[number].size < 0.7 for number in search.pose])
    sharp = search.block > 8
    for chosen, source in ((shrinks, coarse), (~shrinks, fine if sharp else coarse)):
        if chosen.any():
            image = torch.from_numpy(source)[None].expand(int(chosen.sum()), -1, -1, -1)
            grid = search.grid[torch.from_numpy(chosen)]
            seen = functional.grid_sample(image, grid, padding_mode="border", align_corners=False)
            blocks[chosen] = seen.numpy().reshape(int(chosen.sum()), -1)
    blocks -= (blocks @ search.planes) @ search.planes.T
    blocks /= np.sqrt(np.square(blocks).sum(1) + search.block**2 * _LEVEL)[:, None]
    return blocks


def _correlations(search: _Search, blocks: Pixels, targets: Pixels) -> Pixels:
    """Correlation [T, C · places] of each block with each place of each target, 0 where it is negative."""
    windows = np.lib.stride_tricks.sliding_window_view(targets, (search.block, search.block), axis=(1, 2))
    flat = np.ascontiguousarray(windows).reshape(-1, search.block**2)
    plane = flat @ search.planes
    energy = np.einsum("ij,ij->i", flat, flat) - np.square(plane).sum(1)
    norm = np.sqrt(np.maximum(energy, 0) + search.block**2 * _LEVEL)
    found: Pixels = blocks @ flat.T
    found /= norm
    np.maximum(found, 0, out=found)
    return found


def _chosen(supports: NDArray[np.float32], poses: tuple[Pose, ...], count: int, each: int) -> list[Place]:
    """The best supported places, at most `each` of one candidate, and those unlike each other."""
    found: list[Place] = []
    known: dict[int, list[Matrix]] = {}
    for flat in np.argsort(-supports[:, :, 0], axis=None, kind="stable"):
        if len(found) == count:
            break
        number, candidate = divmod(int(flat), supports.shape[1])
        mine = known.setdefault(candidate, [])
        if len(mine) == each:
            continue
        support, y, x = supports[number, candidate].astype(np.float64)
        turn = poses[number].matrix()
        matrix = np.concatenate([turn, -turn @ np.array([[x], [y]]) * 2 / SIDE], 1)
        if all(np.abs(matrix - other).max() >= 0.25 for other in mine):
            mine.append(matrix)
            found.append(Place(candidate, matrix, float(support)))
    return found
