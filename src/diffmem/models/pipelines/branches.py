"""What a hook on a network sees: one pass, whose it is, and which of its rows are conditional."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from diffmem.errors import MitigationRefused, ModelError
from diffmem.models.conditioning import SHAPE, Conditioning
from diffmem.models.denoiser import Denoiser


@dataclass(frozen=True)
class Pass:
    """One pass of the network as it was asked for.

    Attributes:
        x: what it is fed with.
        t: the time.
        cond: one row per row of x.
        done: whether the network has computed it already.
    """

    x: torch.Tensor
    t: float
    cond: Conditioning
    done: bool = False


def read_pass(denoiser: Denoiser, args: tuple[Any, ...], kwargs: Mapping[str, Any], done: bool = False) -> Pass:
    """The pass behind the arguments of a network's call; ModelError if they cannot be read."""
    try:
        x, t, tensors = denoiser.read_call(args, kwargs)
        rows = {name: _rows(name, value, len(x)) for name, value in tensors.items() if value is not None}
        return Pass(x.detach(), float(torch.as_tensor(t).reshape(-1)[0]), Conditioning(rows, len(x)), done)
    except (KeyError, TypeError, AttributeError, RuntimeError) as problem:
        raise ModelError(
            f"The network was called in a way that cannot be read ({type(problem).__name__}: {problem})."
        ) from problem


def _rows(name: str, value: torch.Tensor, size: int) -> torch.Tensor:
    if value.ndim == 0 or len(value) == 1:
        value = value.reshape(1, *value.shape[1:]).expand(size, *value.shape[1:])
    if len(value) != size:
        raise ModelError(f"The network is given {len(value)} rows of {name} for {size} images; expected as many.")
    return value.detach()


def raw_output(output: Any) -> Any:
    """The tensor (or list of tensors) of a network's output, whatever it is wrapped in."""
    return output[0] if isinstance(output, tuple) else output.sample


@contextmanager
def hooked(denoiser: Denoiser, hook: Callable[..., Any], before: bool = False) -> Iterator[None]:
    """Call a hook after (or before) every pass of the model's network inside the block, also if it ends by an exception."""
    handles: list[Any] = []
    try:
        for module in denoiser.network_modules():
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            handles.append(register(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


_own: ContextVar[bool] = ContextVar("own", default=False)


def own_evaluation() -> bool:
    """Whether a mitigation or a score, and not the pipeline, is calling the network just now."""
    return _own.get()


@contextmanager
def own_evaluations(own: bool = True) -> Iterator[None]:
    """Mark what is evaluated inside as no evaluation of the pipeline's, or as one after all."""
    token = _own.set(own)
    try:
        yield
    finally:
        _own.reset(token)


def halves_of(rows: int, size: int) -> list[slice] | None:
    """The one or two branches of `size` images in a call of so many rows; None where there are more or other rows."""
    return [slice(at, at + size) for at in range(0, rows, size)] if rows in (size, 2 * size) else None


class BranchSorter:
    """Tells conditional from unconditional rows of a network call by the embeddings, not by their place.

    Families put the branches in one batch in either order, or in two calls. The arrangement whose embeddings lie
    closest to the prompts' and the negative prompts' is taken.

    Args:
        conditional: what the prompts of a call become, one row per image.
        negative: what guidance leads away from, one row per image.
    """

    def __init__(self, conditional: Conditioning, negative: Conditioning) -> None:
        self.size, self._conditional, self._negative = len(conditional), conditional, negative

    def conditional_rows(self, cond: Conditioning, expected_first: bool = True) -> list[bool]:
        """Per row of a pass whether it is conditional; the images are in order within both branches.

        Raises:
            MitigationRefused: there are neither one nor two rows per image.
        """
        halves = halves_of(len(cond), self.size)
        if halves is None:
            raise MitigationRefused(
                f"The network was called with {len(cond)} rows for {self.size} images; a mitigation that looks at the "
                "guidance knows one or two rows per image: turn further guidance (perturbed attention) off."
            )
        parts = [cond.select(range(half.start, half.stop)) for half in halves]
        near = [float(distances(part, self._conditional).sum()) for part in parts]
        far = [float(distances(part, self._negative).sum()) for part in parts]
        if len(halves) == 1:
            return [near[0] < far[0] or (near == far and expected_first)] * self.size
        usual, reverse = far[0] + near[1], near[0] + far[1]
        return [reverse < usual] * self.size + [reverse >= usual] * self.size


def nearest_branch(row: Conditioning, branches: Sequence[Conditioning]) -> int:
    """The number of the conditioning (one row each) that one row of a pass lies closest to; of equal ones the first."""
    found = [float(distances(row, branch)[0]) for branch in branches]
    return found.index(min(found))


def distances(rows: Conditioning, known: Conditioning) -> torch.Tensor:
    r"""How far the prompts of rows are from known ones, $\|a - b\|^2 / (\|a\|^2 + \|b\|^2)$, [B]; infinite without any.

    Token embeddings or class labels tell prompts apart; where there are neither, all tensors do, added up. Rows of other
    length are compared as far as both go, unless the rows of a conditioning have lengths of their own: these are known,
    and zeros follow.

    Args:
        rows: B rows.
        known: B rows, or one for all.
    """
    own = [name for name in ("encoder_hidden_states", "class_labels") if name in rows.tensors][:1]
    total = torch.zeros(len(rows), dtype=torch.float64)
    for name in own or rows.tensors:
        a, b = rows.tensors[name], known.tensors.get(name)
        if b is None or a.ndim != b.ndim:
            return torch.full((len(rows),), torch.inf, dtype=torch.float64)
        a, b = a.detach().double(), b.detach().to(a.device).double()
        if name + SHAPE in rows.tensors:
            both = Conditioning.cat([Conditioning({"a": a}, len(a)), Conditioning({"a": b}, len(b))]).tensors["a"]
            a, b = both[: len(a)], both[len(a) :]
        elif a.ndim > 1:
            length = min(a.shape[1], b.shape[1])
            a, b = a[:, :length], b[:, :length]
        if a.shape[1:] != b.shape[1:]:
            return torch.full((len(rows),), torch.inf, dtype=torch.float64)
        b = b.expand_as(a)
        a, b = a.reshape(len(a), -1), b.reshape(len(a), -1)
        scale = (a.square().sum(1) + b.square().sum(1)).clamp_min(torch.finfo(torch.float64).tiny)
        total += ((a - b).square().sum(1) / scale).cpu()
    return total.nan_to_num(nan=torch.inf)
