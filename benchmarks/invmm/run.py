"""InvMM on the digits testbed: what it rises and falls with, what it separates, and what its speed comes from.

Sections, each resumable image by image (rows are kept in result.json and not measured twice):
  text           duplication counts, seen-once, never seen; own captions, guidance 2
  unconditional  the twin without captions
  long           both with three times the steps: what is reached later, and what never is
  membership     loss, PIA, SecMI on the same groups, and the shift check
  settings       guidance, sampler, sampling steps on the plants at the edge of memorization (5 and 10 copies)
  training       models trained for fewer steps (--short STEPS=FOLDER, made by diffmem.testbeds.digits.train)
  beta           the similarity that counts as reproduced, on the same plants (its default is in section text)
  restarts       the searches of section long once more under other seeds: does one search find what the best finds?
  prompt         the caption is not given but fitted: which of its words come back
  speed          batched, one at a time, without skipped checks, with whole checks, without early stopping

    python benchmarks/invmm/run.py [--sections text unconditional ...] [--short 800=DIR] [--out result.json]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from summary import summary

from diffmem.evaluation.shift import shift_check
from diffmem.models.target import Target
from diffmem.randomness import seed_of
from diffmem.runs.provenance import provenance
from diffmem.scores.image.base import ImageItem
from diffmem.scores.image.invmm.similarity import calibrated_beta, descriptor_of
from diffmem.scores.spec import parse_image_score
from diffmem.testbeds import digits
from diffmem.testbeds.digits.data import to_signed

COUNTS = (2, 5, 10, 20, 50)
STEPS = 40
TEXT, PLAIN = f"invmm:steps={STEPS},guidance=2", f"invmm:steps={STEPS}"
LONG = f"invmm:steps={3 * STEPS}"
SETTINGS = {
    "guidance 1": "guidance=1", "guidance 2": "guidance=2", "guidance 4": "guidance=4",
    "10 steps": "guidance=2,sampler_steps=10", "50 steps": "guidance=2,sampler_steps=50",
    "Heun, 10 steps": "guidance=2,sampler=heun,sampler_steps=10",
}  # fmt: skip
BETAS = (0.85, 0.9, 0.95, 0.97)
RESTARTS = (1, 2)
SPEED = {
    "batched": ("", 16), "one at a time": ("", 1), "no check skipped": (",skip=false", 16),
    "all samples at every check": (",skip=false,one_first=false", 16),
    "no early stopping": (",beta=1.5", 16),
}  # fmt: skip


class Bench:
    """Nothing is kept of an image at work: the rows of finished images are enough here."""

    def __init__(self, batch, seed=0):
        self.seed, self.batch = seed, batch

    def load(self, image_id):
        return None

    def save(self, image_id, state):
        pass

    def tick(self, note=""):
        pass


class Images:
    """The testbed's images by group, each in a fixed random order."""

    def __init__(self):
        data = digits.load()
        named = {"hard": [], "generic": []} | {f"plant {count}": [] for count in COUNTS}
        for image in data.training:
            if image.tier != "template":
                name = f"plant {image.count}" if image.tier == "plant" else image.tier
                named[name].append((image.id, image.pixels, image.captions[0]))
        generic = {p.digit: p.text for p in data.prompts if p.tier == "generic"}
        unseen = {}
        for prompt in data.prompts:
            if prompt.tier == "unseen":
                unseen.setdefault(prompt.digit, []).append(prompt.text)
        held = [(image.id, image.pixels, image.digit) for image in data.held_out]
        named["held out"] = [(i, pixels, generic[digit]) for i, pixels, digit in held]
        named["held out, unseen caption"] = [
            (f"{i} unseen", pixels, unseen[digit][k % len(unseen[digit])]) for k, (i, pixels, digit) in enumerate(held)
        ]
        self.groups = {
            name: sorted(rows, key=lambda row: seed_of(0, "benchmark", row[0])) for name, rows in named.items()
        }

    def items(self, denoiser, group, count):
        found = []
        for name, pixels, caption in self.groups[group][:count]:
            x = torch.from_numpy(to_signed(pixels))[None]
            with torch.no_grad():
                condition = denoiser.encode_prompts([caption]) if denoiser.conditional else denoiser.null()
            found.append(ImageItem(name, x, x, caption if denoiser.conditional else None, condition))
        return found


class Benchmark:
    """Rows measured so far, and the models."""

    def __init__(self, path):
        self.path, self.images, self.models = path, Images(), {}
        self.report = json.loads(path.read_text()) if path.exists() else {"rows": [], "speed": {}}

    def denoiser(self, model):
        if model not in self.models:
            folder = digits.model_path(model) if model in ("text", "unconditional") else model
            self.models[model] = Target.from_pretrained(folder).denoiser
        return self.models[model]

    def save(self, final=False):
        if final:
            self.report["summary"] = summary(self.report)
        self.report["provenance"] = provenance().model_dump()
        rest = json.dumps({k: v for k, v in self.report.items() if k != "rows"}, indent=1)
        rows = ",\n".join(json.dumps(row) for row in self.report["rows"])
        self.path.write_text(f'{rest[:-2]},\n "rows": [\n{rows}\n]}}\n')

    def measure(self, section, model, spec, groups, name=None, batch=16, seed=0):
        """Measure so many images of each group; what is there already is left alone."""
        denoiser = self.denoiser(model)
        name = name or model
        known = {(r["section"], r["model"], r["spec"], r["group"], r["id"]) for r in self.report["rows"]}
        score = parse_image_score(spec)
        score.check(denoiser)
        items, of = [], {}
        for group, count in groups.items():
            for item in self.images.items(denoiser, group, count):
                if (section, name, spec, group, item.id) not in known:
                    items.append(item)
                    of[item.id] = group
        started, cpu = time.perf_counter(), time.process_time()
        for result in score.run(denoiser, items, Bench(batch, seed)):
            components = {k: v for k, v in result.components.items() if k not in ("trace", "beta") and v is not None}
            row = {"section": section, "model": name, "spec": spec, "group": of[result.id], "id": result.id}
            row["evidence"] = result.evidence
            if spec.startswith("invmm"):
                row["value"] = None if result.value is None or np.isinf(result.value) else result.value
                row |= {"nfe": result.nfe.total} | components
            self.report["rows"].append(row)
            if spec.startswith("invmm"):
                self.save()
        if items:
            print(f"{section} {name} {spec}: {len(items)} images, {time.perf_counter() - started:.0f} s, "
                  f"{time.process_time() - cpu:.0f} s of CPU", flush=True)  # fmt: skip
            self.save()

    def text(self):
        groups = {f"plant {count}": 6 for count in COUNTS}
        groups |= {"hard": 10, "generic": 10, "held out": 10, "held out, unseen caption": 10}
        self.measure("text", "text", TEXT, groups)

    def unconditional(self):
        groups = {"plant 50": 10, "plant 20": 6, "generic": 14, "held out": 14}
        self.measure("unconditional", "unconditional", PLAIN, groups)

    def long(self):
        groups = {"plant 50": 10, "plant 20": 4, "generic": 10, "held out": 10}
        self.measure("long, unconditional", "unconditional", LONG, groups)
        groups = {"plant 2": 4, "plant 5": 4, "hard": 4}
        self.measure("long, text", "text", f"{LONG},guidance=2", groups)

    def membership(self):
        groups = {f"plant {count}": 20 for count in COUNTS} | {"hard": 100, "generic": 200, "held out": 200}
        for model in ("text", "unconditional"):
            for spec in ("loss", "pia", "secmi"):
                self.measure("membership", model, spec, groups, batch=100)
        pixels = {
            g: np.stack([to_signed(p)[None] for _, p, _ in self.images.groups[g]])
            for g in ("hard", "generic", "held out")
        }
        for group in ("generic", "hard"):
            check = shift_check(pixels[group][:320], pixels["held out"])
            self.report[f"shift check, {group} against held out"] = vars(check)
        descriptor = descriptor_of("l2-tiled", "", (1, 8, 8))
        distinct = torch.from_numpy(np.concatenate([pixels["hard"], pixels["generic"]]))
        self.report["calibrated beta, 1 % of distinct training images"] = calibrated_beta(list(distinct), descriptor)
        self.save()

    def settings(self):
        for name, more in SETTINGS.items():
            self.measure("settings", "text", f"invmm:steps={STEPS},{more}", {"plant 5": 4, "plant 10": 4}, name=name)

    def beta(self):
        for beta in BETAS:
            groups = {f"plant {count}": 4 for count in (2, 5, 10, 20)} | {"hard": 4}
            self.measure("beta", "text", f"{TEXT},beta={beta}", groups, name=f"beta {beta}")

    def restarts(self):
        for seed in RESTARTS:
            groups = {"plant 2": 4, "plant 5": 4, "hard": 4}
            self.measure("restarts", "text", f"{LONG},guidance=2", groups, name=f"seed {seed}", seed=seed)

    def prompt(self):
        spec = f"invmm:prompt=invert,steps={2 * STEPS},guidance=2"
        self.measure("prompt", "text", spec, {"plant 50": 4, "plant 20": 4, "hard": 4})
        captions = {name: text for rows in self.images.groups.values() for name, _, text in rows}
        for row in self.report["rows"]:
            if row["section"] == "prompt":
                words = set(captions[row["id"]].lower().split())
                row["caption"], row["words_found"] = captions[row["id"]], len(words & set(row["prompt"].split()))
                row["words"] = len(words)
        self.save()

    def training(self, short):
        for steps, folder in short.items():
            groups = {f"plant {count}": 6 for count in COUNTS}
            self.measure("training", folder, TEXT, groups, name=f"text, {steps} steps")

    def speed(self):
        """Seconds per image of the same images, in one run; CPU seconds beside, since other work shares the machine."""
        denoiser = self.denoiser("text")
        items = [i for group in ("plant 5", "plant 10", "hard") for i in self.images.items(denoiser, group, 3)]
        for name, (more, batch) in SPEED.items():
            score = parse_image_score(f"invmm:steps=30,guidance=2{more}")
            started, cpu = time.perf_counter(), time.process_time()
            results = list(score.run(denoiser, items, Bench(batch)))
            self.report["speed"][name] = {
                "images": len(items), "seconds_per_image": (time.perf_counter() - started) / len(items),
                "cpu_seconds_per_image": (time.process_time() - cpu) / len(items),
                "nfe_per_image": float(np.mean([r.nfe.total for r in results])),
                "steps_per_image": float(np.mean([r.components["steps"] for r in results])),
                "reached": sum(r.components["status"] == "reached" for r in results),
            }  # fmt: skip
            print(name, self.report["speed"][name], flush=True)
            self.save()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = (
        "text", "unconditional", "membership", "settings", "beta", "restarts", "prompt", "speed", "training", "long",
    )  # fmt: skip
    parser.add_argument("--sections", nargs="+", choices=sections, default=sections)
    parser.add_argument("--short", nargs="*", default=[], metavar="STEPS=FOLDER")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("result.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    benchmark = Benchmark(options.out)
    for section in options.sections:
        if section == "training":
            benchmark.training(dict(pair.split("=", 1) for pair in options.short))
        else:
            getattr(benchmark, section)()
        benchmark.save(final=True)


if __name__ == "__main__":
    main()
