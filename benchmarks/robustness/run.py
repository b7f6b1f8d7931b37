"""Do mitigations hold when the seed, the guidance, the sampler, the words or the embedding change?

On each testbed some captions that the model reproduces, spread over all of them; a copy is what an audit calls one (the
committed result was made with the testbeds' own rule, before robustness was an experiment). Every condition is generated
from the same noises without and with the mitigation. The adversarial search (50 steps of 8 noises per caption) is made
against the bare model: it does not know of the mitigation that its embedding then meets.

    python benchmarks/robustness/run.py --work DIR [--beds digits,photos] [--methods wen,ren] [--again NAME]

resumes: what result.json holds already is kept, except parts whose name begins with NAME.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import diffmem as dm
from diffmem.atomic import write_atomic
from diffmem.evaluation.text_alignment import parse_alignment
from diffmem.experiments.robustness.conditions import RobustnessPlan, word_variants
from diffmem.experiments.robustness.run import robustness
from diffmem.models.generation import Sampling
from diffmem.runs.provenance import provenance
from diffmem.stages.match.stage import Matching
from diffmem.testbeds import digits, photos

FILE = Path(__file__).with_name("result.json")
ROOT = 11  # of the images; the truth was measured with another
CAPTIONS = {"digits": 8, "photos": 6}
SAMPLING = {"digits": Sampling(steps=20, guidance=2.0), "photos": Sampling(steps=12, guidance=2.0)}  # as the truth's
STATISTIC = {"digits": None, "photos": "ratio"}  # as in the demo
# Of every level that has one, a mitigation that lowers copying on the digits (benchmarks/mitigation), in the settings that do.
METHODS = (
    "random-tokens:count=2", "transition-static:until=150", "ren", "prss:tokens=2,low=0.3,high=0.6",
    "anisotropy:weights=0/1,target=-0.25,lr=0.1,steps=20",
)  # fmt: skip

# Its target is a pull, which belongs to a model: one that leaves few copies on each (benchmarks/mitigation).
FURTHER = {"digits": ("low-noise-norm:pull=0.03",), "photos": ("low-noise-norm:pull=0.007",)}


def opened(name, folder):
    """A testbed's model, its training and held-out images, and the captions that it reproduces."""
    module = {"digits": digits, "photos": photos}[name]
    inputs = module.materialize(folder / name)
    captions = [row["caption"] for row in module.truth() if row["label"] == "reproduced"]
    return dm.Target.from_pretrained(inputs.model, name=f"testbed:{name}"), inputs, captions


class Results:
    """result.json, part by part."""

    def __init__(self, beds, again):
        kept = {k: v for k, v in self.written().items() if again is None or not k.startswith(again)}
        self.parts = kept
        if again is not None:
            self.write(merge=False)
        # Another process may be at another testbed: its parts are read from the file when this one writes.
        self.parts = {k: v for k, v in kept.items() if k.partition("/")[0] in beds}

    @staticmethod
    def written():
        return json.loads(FILE.read_text())["parts"] if FILE.exists() else {}

    def part(self, name, make):
        if name not in self.parts:
            started = time.perf_counter()
            self.parts[name] = make()
            self.write()
            print(f"{name} ({time.perf_counter() - started:.0f} s)", flush=True)
        return self.parts[name]

    def write(self, merge=True):
        parts = self.written() | self.parts if merge else self.parts
        written = {
            "root_seed": ROOT, "captions": CAPTIONS, "threads": 1, "parts": parts,
            "sampling": {name: s.model_dump(exclude_none=True) for name, s in SAMPLING.items()},
            "provenance": provenance().model_dump(),
        }  # fmt: skip
        write_atomic(FILE, (json.dumps(written, indent=1) + "\n").encode())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs, which the same command resumes")
    parser.add_argument("--beds", default="digits,photos")
    parser.add_argument("--methods", help="only those whose names are given")
    parser.add_argument("--again", help="compute parts again whose name begins so")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.beds.split(","), options.again)
    for name in options.beds.split(","):
        target, inputs, captions = opened(name, options.work)
        count = CAPTIONS[name]
        chosen = [captions[i * len(captions) // count] for i in range(count)]
        plan = RobustnessPlan(sampling=SAMPLING[name], draws=2, seed=ROOT, batch=32)

        def rows(method, name=name, target=target, inputs=inputs, chosen=chosen, plan=plan):
            run = robustness(
                target, chosen, method, inputs.train, plan, out=options.work / f"{name}-run", heldout=inputs.held_out,
                matching=Matching(statistic=STATISTIC[name]), paraphrase=word_variants, alignment=parse_alignment(name),
                silent=False,
            )  # fmt: skip
            return list(run.summary.rows)

        for method in (*METHODS, *FURTHER[name]):
            if options.methods is None or method.partition(":")[0] in options.methods.split(","):
                results.part(f"{name}/{method}", lambda x=method, rows=rows: rows(x))
    results.write()


if __name__ == "__main__":
    main()
