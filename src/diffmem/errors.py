"""Every error that diffmem raises on purpose, with the exit code that the command line gives it.

Exit codes: 0 done, whatever the finding; 1 a gate tripped or the check of the model failed; 2 input or an option refused;
3 incomplete (the same command resumes), or nothing could be judged; 4 the run, threshold or index belongs to another model,
plan or training set; 70 a defect of diffmem.
"""

from __future__ import annotations


class DiffmemError(Exception):
    """A problem that the user can act on; the message says what was found, what was expected and what to do."""

    exit_code = 2


class UsageError(DiffmemError):
    """An argument or a plan that makes no sense."""


class DataError(DiffmemError):
    """A prompt list, image set or index that cannot be read."""


class ModelError(DiffmemError):
    """A model that is missing, broken or of a kind that is not supported."""


class GenerateOnly(ModelError):
    """A pipeline whose network cannot be scored, for a reason that the message says, but which makes images."""


class UndefinedConversion(ModelError):
    """A conversion of network outputs that does not exist at this noise level (a division by zero)."""


class ScoreRefused(DiffmemError):
    """A score that cannot run on this model; the message says why and what can be used instead."""


class MitigationRefused(DiffmemError):
    """A mitigation that cannot work on this model or call; the message says why and what can be used instead."""


class IncompleteRun(DiffmemError):
    """Work stopped before its end; everything computed is kept and the same command goes on."""

    exit_code = 3


class NothingJudged(DiffmemError):
    """The work is done and gave no value to judge by; no gate passes on it."""

    exit_code = 3


class IncompatibleRun(DiffmemError):
    """A run directory that belongs to another model, plan or version."""

    exit_code = 4


class CheckFailed(DiffmemError):
    """What diffmem sees is not what the pipeline runs; numbers would not describe the model."""

    exit_code = 1


class GateTripped(DiffmemError):
    """A `--fail-if` condition held."""

    exit_code = 1


def first_line(problem: BaseException) -> str:
    """What an exception says, without what follows its first line."""
    text = str(problem).strip()
    return text.splitlines()[0][:300] if text else type(problem).__name__
