"""What a few rehearsals tell of a pipeline that no family knows: its latents, times and branches, and where prompts enter.

Everything is found by changing one thing between two runs and looking at what changes in the calls of the network: the
prompt, the negative prompt, the number of prompts, the step. Whatever is found in no way or in two is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffmem.errors import ModelError
from diffmem.models.pipelines.leaves import Kind, differing, kind_of, leaves, row_of, tensors_of
from diffmem.models.pipelines.rehearsal import NetworkCall, Rehearsal, Step

PROMPTS = ("dog on a hill", "cat on a hill")
LONG = "an old wooden boat on a quiet lake in the morning fog, " * 3
NEGATIVE = "fox in a wood"
EMPTY = " "
"""The negative prompt that turns guidance on where a pipeline does not guide without one."""

Run = Callable[..., Rehearsal]


@dataclass(frozen=True)
class Times:
    """The network's time as a function of the scheduler's: scale * t + offset, in the dtype that the pipeline passes."""

    name: str
    scale: float
    offset: float
    like: torch.Tensor

    def of(self, t: torch.Tensor) -> torch.Tensor:
        """Times of the network [B] for times of the scheduler [B]."""
        times = self.scale * t.double() + self.offset
        if self.like.is_floating_point():
            return times.to(self.like.dtype)
        return times.long() if bool((times == times.round()).all()) else times.float()

    def back(self, given: Any) -> torch.Tensor:
        """Times of the scheduler for what the network was given."""
        return (torch.as_tensor(given).double() - self.offset) / self.scale


@dataclass(frozen=True)
class Branch:
    """Where one of the two branches is asked: the call within a step and the row within the call."""

    call: int
    row: int


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        x: name of the argument with the noisy latents.
        times: how the network is told the time.
        conditional, unconditional: where the branches are; unconditional is None where the model has none.
        guiding: arguments of the pipeline's call that make it run both.
        kinds: per leaf of the arguments, how it depends on the batch.
        prompted: leaves that depend on prompt or branch.
        ragged: those of them whose shape does too.
        batches: whether a prompt reaches the network in the same way beside a much longer one.
        example: the call of the conditional branch.
        step: the first step of a run.
    """

    x: str
    times: Times
    conditional: Branch
    unconditional: Branch | None
    guiding: Mapping[str, Any]
    kinds: Mapping[str, Kind]
    prompted: tuple[str, ...]
    ragged: frozenset[str]
    batches: bool
    example: NetworkCall
    step: Step

    def at(self, branch: Branch, step: Step) -> dict[str, Any]:
        """What one row of one call was given, by leaf."""
        found = leaves(step.calls[branch.call].arguments)
        return {path: row_of(value, self.kinds[path], branch.row) for path, value in found.items()}


def rows_of(x: Any) -> list[torch.Tensor]:
    """The rows of the noisy latents, from a tensor or a list."""
    return list(x)


def survey(run: Run, takes: Mapping[str, Any], distilled: bool, train_times: float) -> Survey:
    """Find out about a pipeline.

    Args:
        run: (prompts, steps=1, further arguments of the pipeline's call) -> rehearsal.
        takes: the parameters of the pipeline's call.
        distilled: whether the model counts as distilled; guidance is not turned on for it.
        train_times: the scheduler's number of training times, for the usual scales of the network's time.

    Raises:
        ModelError: what could not be told apart.
    """
    guiding, first = _guided(run, takes, distilled)
    step = first.steps[0]
    x = _latents(step)
    other = run([PROMPTS[1]], **guiding).steps[0]
    kinds = _kinds(run, step, guiding, x)

    def entries(of: Step) -> dict[Branch, dict[str, Any]]:
        found = {}
        for i, call in enumerate(of.calls):
            values = leaves(call.arguments)
            for row in range(len(rows_of(values[x]))):
                found[Branch(i, row)] = {path: row_of(value, kinds[path], row) for path, value in values.items()}
        return found

    before, after = entries(step), entries(other)
    moved = {branch: differing(before[branch], after[branch]) for branch in before}
    conditional, unconditional = _branches(moved)
    if "negative_prompt" in takes and unconditional is not None:
        _confirm(
            conditional,
            unconditional,
            before,
            entries(run([PROMPTS[0]], **{**guiding, "negative_prompt": [NEGATIVE]}).steps[0]),
        )
    times = _times(first.steps, x, conditional, entries, train_times)
    fixed = {x, times.name}
    varied = [entries(run([text], **guiding).steps[0]) for text in (EMPTY, LONG)]
    prompted, ragged = set(moved[conditional]), set()
    for found in (after, *varied):
        prompted |= differing(before[conditional], found[conditional])
    if unconditional is not None:
        prompted |= differing(before[conditional], before[unconditional])
    prompted -= fixed
    shown = [found[branch] for found in (before, after, *varied) for branch in (conditional, unconditional) if branch]
    for path in prompted:
        if not all(isinstance(one.get(path), torch.Tensor) for one in shown):
            raise ModelError(
                f"The argument {path} of the network depends on the prompt and is no tensor, so it cannot be replayed."
            )
        if len({tuple(one[path].shape) for one in shown}) > 1:
            ragged.add(path)
    # A time that is the same for one prompt and for two was made for the rows of one.
    told = torch.as_tensor(leaves(step.calls[conditional.call].arguments)[times.name])
    fixed_rows = kinds[times.name] == "whole" and told.numel() > 1
    batches = not fixed_rows and _batches(run, guiding, step, conditional, kinds, prompted)
    return Survey(
        x, times, conditional, unconditional, guiding, kinds, tuple(sorted(prompted)), frozenset(ragged), batches,
        step.calls[conditional.call], step,
    )  # fmt: skip


def _guided(run: Run, takes: Mapping[str, Any], distilled: bool) -> tuple[dict[str, Any], Rehearsal]:
    """Arguments with which the pipeline runs two branches, and a run with them; those of its own default first."""

    def plain(arguments: Mapping[str, Any]) -> Rehearsal:
        return run([PROMPTS[0]], steps=3, **arguments)

    first = plain({})
    tries: list[dict[str, Any]] = [{"guidance_scale": 4.0}, {"negative_prompt": [EMPTY]},
                                   {"negative_prompt": [EMPTY], "true_cfg_scale": 4.0}]  # fmt: skip
    if distilled or _entries(first) > 1:
        return {}, first
    for arguments in tries:
        if arguments.keys() <= takes.keys():
            found = plain(arguments)
            if _entries(found) > 1:
                return arguments, found
    return {}, first


def _entries(found: Rehearsal) -> int:
    if not found.steps or not found.steps[0].calls:
        raise ModelError("The pipeline never called its network before its scheduler's first step.")
    step = found.steps[0]
    return sum(len(rows_of(leaves(call.arguments)[_latents(step)])) for call in step.calls)


def _latents(step: Step) -> str:
    """The argument whose every row is the pipeline's latents, up to a factor."""
    own = step.sample.double().reshape(-1)

    def fits(value: Any) -> bool:
        parts = tensors_of(value)
        if not parts or (isinstance(value, list) and len(parts) != len(value)):
            return False
        rows = [row.double().reshape(-1) for row in (parts if isinstance(value, list) else value if value.ndim else [])]
        return bool(rows) and all(
            len(row) == len(own) and torch.dot(row, own.to(row)) > 0.9999 * row.norm() * own.to(row).norm()
            for row in rows
        )

    found = {path for call in step.calls for path, value in leaves(call.arguments).items() if fits(value)}
    if len(found) != 1 or any(not fits(leaves(call.arguments).get(next(iter(found)))) for call in step.calls):
        raise ModelError(
            f"No single argument of the network holds the pipeline's latents ({', '.join(sorted(found)) or 'none does'}): "
            "it needs more than noise, or an unusual layout."
        )
    return found.pop()


def _kinds(run: Run, step: Step, guiding: Mapping[str, Any], x: str) -> dict[str, Kind]:
    """How each leaf depends on the batch, from one prompt and the same prompt twice."""
    doubled = {k: v * 2 if isinstance(v, list) else v for k, v in guiding.items()}
    twice = run([PROMPTS[0]] * 2, **doubled).steps[0]
    if len(twice.calls) != len(step.calls):
        raise ModelError(
            f"Two prompts make {len(twice.calls)} calls of the network a step, one makes {len(step.calls)}."
        )
    kinds: dict[str, Kind] = {}
    for one, two in zip(step.calls, twice.calls, strict=True):
        values, more = leaves(one.arguments), leaves(two.arguments)
        rows = len(rows_of(values[x]))
        for path, value in values.items():
            kind = kind_of(value, more.get(path), rows)
            if kind is None or kinds.get(path, kind) != kind:
                raise ModelError(f"How the network's argument {path} depends on the number of prompts is not clear.")
            kinds[path] = kind
    return kinds


def _batches(
    run: Run, guiding: Mapping[str, Any], step: Step, branch: Branch, kinds: Mapping[str, Kind], prompted: set[str]
) -> bool:
    """Whether what the conditional branch is given for a prompt stays the same beside a longer prompt."""
    doubled = {k: v * 2 if isinstance(v, list) else v for k, v in guiding.items()}
    both = leaves(run([PROMPTS[0], LONG], **doubled).steps[0].calls[branch.call].arguments)
    alone = leaves(step.calls[branch.call].arguments)
    first = {path: row_of(both[path], kinds[path], 2 * branch.row) for path in prompted}
    return not differing({path: row_of(alone[path], kinds[path], branch.row) for path in prompted}, first)


def _branches(moved: Mapping[Branch, set[str]]) -> tuple[Branch, Branch | None]:
    """(conditional, unconditional): the one whose arguments follow the prompt, and the one whose do not."""
    follow = [branch for branch, paths in moved.items() if paths]
    still = [branch for branch, paths in moved.items() if not paths]
    if len(follow) != 1 or len(still) > 1:
        raise ModelError(
            f"Of {len(moved)} evaluations a step, {len(follow)} depend on the prompt "
            f"({', '.join(sorted(set().union(*moved.values()))) or 'no argument does'}): the conditional and the "
            "unconditional branch cannot be told apart."
        )
    return follow[0], still[0] if still else None


def _confirm(
    conditional: Branch, unconditional: Branch, before: Mapping[Branch, Mapping[str, Any]],
    after: Mapping[Branch, Mapping[str, Any]],
) -> None:  # fmt: skip
    """A negative prompt must change the unconditional branch and no other."""
    if before.keys() != after.keys() or not differing(before[unconditional], after[unconditional]):
        raise ModelError("A negative prompt changes nothing in the branch that the prompt does not reach.")
    if differing(before[conditional], after[conditional]):
        raise ModelError("A negative prompt changes the branch of the prompt too: the two cannot be told apart.")


def _times(
    steps: Sequence[Step], x: str, branch: Branch, entries: Callable[[Step], dict[Branch, dict[str, Any]]], total: float
) -> Times:
    """The one argument besides the latents that changes from step to step, as a function of the scheduler's time."""
    rows = [entries(step)[branch] for step in steps]
    changing = set().union(*(differing(rows[0], row) for row in rows[1:])) - {x}
    if len(changing) != 1:
        raise ModelError(
            f"From step to step {', '.join(sorted(changing)) or 'nothing'} changes in the network's arguments besides the "
            "latents; expected its time alone."
        )
    name = changing.pop()
    given = [torch.as_tensor(row[name]).reshape(-1) for row in rows]
    if any(not len(value) or bool((value != value[0]).any()) for value in given):
        raise ModelError(f"The network's time {name} is not one number per row.")
    given = [value[0] for value in given]  # PRX gives both of its rows' times, whatever the number of prompts
    own, theirs = [step.t for step in steps], [float(value) for value in given]
    slope = (theirs[-1] - theirs[0]) / (own[-1] - own[0])
    usual = [(1.0, 0.0), (1 / total, 0.0), (-1 / total, 1.0), (-1.0, total), (slope, theirs[0] - slope * own[0])]
    rounding = 1e-2 if given[0].dtype in (torch.bfloat16, torch.float16) else 1e-5
    for scale, offset in usual:
        if all(
            abs(scale * t + offset - n) <= rounding * max(abs(n), abs(scale) * total / 100)
            for t, n in zip(own, theirs, strict=True)
        ):
            return Times(name, scale, offset, given[0])
    raise ModelError(f"The network's time {name} is no linear function of the scheduler's: {theirs} at {own}.")
