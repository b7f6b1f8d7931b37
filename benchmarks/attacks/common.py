"""What the campaigns share: a tiny model with inputs, commands in this process, and outcomes that are counted."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import resource
import signal
import sys
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.tiny import picture, tiny_sd

from diffmem.cli.app import main
from diffmem.cli.model_options import ModelOptions

SECONDS = 20
"""After so many a command is interrupted as by Ctrl-C: it was accepted and works on."""
MEMORY = 6 * 2**30


@dataclass
class Tally:
    """Outcomes of a campaign, and the trials that failed."""

    campaign: str
    outcomes: Counter = field(default_factory=Counter)
    failed: list = field(default_factory=list)

    def add(self, outcome, label="", wrong=False):
        self.outcomes[outcome] += 1
        if wrong:
            self.failed.append(f"{label}: {outcome}")

    def result(self, **more):
        return {
            "campaign": self.campaign, "trials": sum(self.outcomes.values()), "failures": len(self.failed),
            "failed": self.failed, "outcomes": dict(sorted(self.outcomes.items())), **more,
        }  # fmt: skip


@dataclass
class Inputs:
    """A tiny model, training and held-out images, prompts."""

    folder: Path
    model: Path
    train: Path
    heldout: Path
    prompts: Path

    @classmethod
    def make(cls, folder):
        quiet()
        folder.mkdir(parents=True, exist_ok=True)
        made = cls(folder, *(folder / name for name in ("model", "train", "heldout", "prompts.txt")))
        tiny_sd().save_pretrained(made.model)
        for place, start in ((made.train, 0), (made.heldout, 100)):
            place.mkdir()
            for i in range(start, start + 12):
                picture(i).save(place / f"{i}.png")
        made.prompts.write_text("a fox\na dog by the sea\na red hill\n")
        return made


def quiet():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextlib.contextmanager
def opened_once():
    """Models are opened and checked once in a campaign that does not attack their opening."""
    original, kept = ModelOptions.open, {}

    def open_(self, model, sampling=None, check=True):
        key = (self, model, sampling, check)
        if key not in kept:
            kept[key] = original(self, model, sampling, check)
        return kept[key]

    ModelOptions.open = open_
    try:
        yield
    finally:
        ModelOptions.open = original


@contextlib.contextmanager
def bounded(seconds=SECONDS):
    """A command that works on after so many seconds is interrupted; one that asks for too much memory is refused it."""

    def interrupt(_number, _frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)


def command(*arguments, seconds=SECONDS):
    """Exit code, stdout, stderr of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with bounded(seconds):
                code = main([os.fsdecode(a) if isinstance(a, bytes | os.PathLike) else str(a) for a in arguments])
        except KeyboardInterrupt:  # between two lines of ours
            code = 3
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException as error:  # nothing may pass the command line
            err.write(f"{type(error).__name__}: {error}")
            code = 70
    return code, out.getvalue(), err.getvalue()


def judge(tally, label, code, out, err):
    """Count an outcome; a defect, and a character that steers the terminal, are failures."""
    steering = sorted({c for c in out + err if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160})
    if code == 70:
        tally.add("exit 70", f"{label} [{err.strip().splitlines()[-2][:150] if err.strip() else ''}]", wrong=True)
    elif steering:
        tally.add("a control character in the output", f"{label} {steering}", wrong=True)
    elif code == 0:
        tally.add("done")
    elif code == 3 and "stopped" in err:
        tally.add("at work until it was interrupted")
    elif not err.strip():
        tally.add("no word of what is wrong", label, wrong=True)
    else:
        tally.add({1: "said, exit 1", 2: "refused, exit 2", 3: "said, exit 3", 4: "refused, exit 4"}[code])


def print_campaign(run, about, trials):
    """The command line of a campaign that takes trials, a seed and seconds: print what it counts."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=trials)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float)
    options = parser.parse_args()
    print(json.dumps(run(options.trials, options.seed, options.seconds), indent=1))
