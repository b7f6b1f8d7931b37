"""The guard on models whose memorized prompts are known: what it stops, what it lets out, what it costs.

On each testbed the captions that are not reproduced are split at random: thresholds come from one half, false alarms are
counted on the other. Calls are of 16 images, or of one where cost is measured. A copy is what the testbed's own truth
calls one (d1/d2 < 1/3 among distinct training images); the guard's index of the training images takes no part in that.

    python benchmarks/guard/run.py [--beds digits,photos] [--again NAME]

resumes: what result.json holds already is kept, except parts whose name begins with NAME.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import diffmem as dm
from diffmem.atomic import write_atomic
from diffmem.copies.calibration import calibrate as calibrate_copies
from diffmem.copies.descriptors import make_descriptor
from diffmem.copies.index import CopyIndex
from diffmem.evaluation.calibration import Setting, calibrate_threshold
from diffmem.evaluation.paired import mean_difference
from diffmem.evaluation.proportion import clopper_pearson
from diffmem.evaluation.text_groups import near_duplicate_groups
from diffmem.mitigation.spec import parse_mitigation
from diffmem.models.generation import Sampling
from diffmem.randomness import seed_of
from diffmem.runs.provenance import provenance
from diffmem.serving.guard import MITIGATION
from diffmem.stages.score.screen import Calibration
from diffmem.testbeds import digits, photos

FILE = Path(__file__).with_name("result.json")
ROOT = 7  # of the images; the truth was measured with another
RATES = (0.01, 0.05)
CALL = 16
DRAWS = {"digits": 1, "photos": 2}  # images per memorized caption
# Captions of either kind behind a guard that mitigates, which takes seconds per flagged image.
MITIGATED = {"digits": (40, 60), "photos": (16, 24)}
SAMPLING = {"digits": Sampling(steps=20, guidance=2.0), "photos": Sampling(steps=12, guidance=2.0)}  # as the truth's
LADDERS = ("before", "generation, 50% of the steps")  # the detectors behind which flagged images are mitigated


class Bed:
    """A testbed: model, captions by kind, the judge of copies, and the index that an operator would have."""

    def __init__(self, name):
        module = {"digits": digits, "photos": photos}[name]
        self.name, self.sampling = name, SAMPLING[name]
        self.target = dm.Target.from_pretrained(module.model_path())
        self.target.pipeline.set_progress_bar_config(disable=True)
        truth, self.data = module.truth(), module.load()
        self.memorized = [row["caption"] for row in truth if row["label"] == "reproduced"]
        others = sorted(
            (row["caption"] for row in truth if row["label"] == "not reproduced"),
            key=lambda text: seed_of(ROOT, "split", text),
        )
        self.reference, self.others = others[: len(others) // 2], others[len(others) // 2 :]
        if name == "digits":
            from diffmem.testbeds.digits.data import to_bytes
            from diffmem.testbeds.digits.matching import References

            self.references = References(self.data)
            self.picture = lambda pixels: Image.fromarray(to_bytes(pixels))
        else:
            from diffmem.testbeds.photos.measure import references

            self.references = references(self.data, self.target.pipeline.vae)
            self.picture = Image.fromarray
        self._index = None

    def copies(self, images):
        """Which images are copies by the testbed's truth; None (refused) is not."""
        given = [i for i, image in enumerate(images) if image is not None]
        found = np.zeros(len(images), bool)
        if given:
            mode = "L" if self.name == "digits" else "RGB"
            pixels = np.stack([np.asarray(images[i].convert(mode), np.float32) / 127.5 - 1 for i in given])
            found[given] = self.references.match(pixels).copies
        return found

    def index(self):
        """The guard's own index of the training images and its threshold at 1 % on held-out images."""
        if self._index is None:
            training = [self.picture(image.pixels) for image in self.data.training]
            index = CopyIndex.build(training, make_descriptor("l2-tiled"))
            held_out = index.descriptor.describe([self.picture(image.pixels) for image in self.data.held_out])
            self._index = {"index": index, "copy_threshold": calibrate_copies(index, held_out)}
        return self._index

    def detectors(self):
        """How each threshold is made: the name of the detector and what guard.calibrate is told."""
        steps, guidance = self.sampling.steps, self.sampling.guidance
        along = f"score-difference:over=steps,k={{}},steps={steps},guidance={guidance}"
        chosen = {"before": {}, "generation, first step": {"score": f"score-difference:steps={steps}"}}
        for share in (0.5, 1.0):
            score = {"score": along.format(round(share * steps))}
            chosen[f"generation, {share:.0%} of the steps"] = score
        return {name: {"regime": name.partition(",")[0], **more} for name, more in chosen.items()}


class Results:
    """result.json, part by part."""

    def __init__(self, again):
        self.parts = {k: v for k, v in self.written().items() if again is None or not k.startswith(again)}
        if again is not None:
            self.write(merge=False)

    @staticmethod
    def written():
        return json.loads(FILE.read_text())["parts"] if FILE.exists() else {}

    def part(self, name, make):
        if name not in self.parts:
            started = time.perf_counter()
            self.parts[name] = make()
            seconds = time.perf_counter() - started
            self.write()
            print(f"{name} ({seconds:.0f} s)", json.dumps(self.parts[name])[:400], flush=True)
        return self.parts[name]

    def write(self, merge=True):
        if merge:  # another process may be at another testbed
            self.parts = self.written() | self.parts
        written = {
            "root_seed": ROOT, "images_per_call": CALL, "images_per_memorized_caption": DRAWS, "mitigation": MITIGATION,
            "sampling": {name: s.model_dump(exclude_none=True) for name, s in SAMPLING.items()}, "threads": 1,
            "parts": self.parts, "provenance": provenance().model_dump(),
        }  # fmt: skip
        write_atomic(FILE, (json.dumps(written, indent=1) + "\n").encode())


def generate(bed, texts, draws, call=CALL):
    """Images, None where they were refused."""
    images = []
    for start in range(0, len(texts), call):
        images += bed.target.generate(texts[start : start + call], draws[start : start + call], ROOT, bed.sampling)
    return images


@contextmanager
def guarded(bed, calibration, action, mitigation, with_index):
    more = bed.index() if with_index else {}
    with dm.guard(
        bed.target, threshold=calibration, action=action, mitigation=mitigation, on_refuse="blank", keep=100_000, **more
    ) as guard:
        yield guard


def at_rate(bed, made, rate):
    """The threshold at another rate from the same reference scores."""
    setting = Setting(**{name: getattr(made.threshold, name) for name in Setting.model_fields})
    values, groups = np.array(made.reference_values), near_duplicate_groups(bed.reference)
    about = made.threshold.reference, made.threshold.reference_fingerprint
    return replace(made, threshold=calibrate_threshold(values, rate, setting, *about, groups))


def logged(bed, calibration):
    """A guard that only logs over both kinds of captions: the value of every image, and whether it is a copy."""
    found = {}
    for kind, texts, count in sets(bed):
        with guarded(bed, calibration, "log", "anisotropy", False) as guard:
            images = generate(bed, [t for t in texts for _ in range(count)], [d for _ in texts for d in range(count)])
        values = [d.value if d.value is not None else np.inf for d in guard.decisions]
        found[kind] = {
            "captions": texts, "values": np.reshape(values, (-1, count)).tolist(),
            "copies": bed.copies(images).reshape(-1, count).tolist(), "extra_nfe": sum(d.nfe for d in guard.decisions),
        }  # fmt: skip
    return found


def refused(calibration, seen):
    """What a threshold refuses of these images, and what it gives out; those are the bare pipeline's, bit by bit."""
    value = calibration.threshold.value
    result = {"threshold": value, "n_reference": calibration.threshold.n_reference}
    for kind, one in seen.items():
        flagged, copied = np.array(one["values"]) >= value, np.array(one["copies"])
        result[kind] = shares(flagged, copied, copied & ~flagged, ~flagged)
    return result


def mitigated(bed, calibration, mitigation, seen):
    """A guard that mitigates and matches, over some captions of either kind: what it gives out and what that costs."""
    result = {"threshold": calibration.threshold.value, "n_reference": calibration.threshold.n_reference}
    for kind, texts, count in sets(bed, MITIGATED[bed.name]):
        with guarded(bed, calibration, "mitigate", mitigation, True) as guard:
            images = generate(bed, [t for t in texts for _ in range(count)], [d for _ in texts for d in range(count)])
        decisions = list(guard.decisions)
        given = np.array([d.outcome != "refused" for d in decisions]).reshape(-1, count)
        value = np.array([d.value if d.value is not None else np.inf for d in decisions]).reshape(-1, count)
        copied = bed.copies([image if kept else None for image, kept in zip(images, given.flat, strict=True)])
        known = dict(zip(seen[kind]["captions"], seen[kind]["copies"], strict=True))
        before = np.array([known[text] for text in texts])
        costs = {
            name: float(np.mean([d.nfe for d in decisions if (d.outcome == "passed") == (name == "passing")] or [0]))
            for name in ("passing", "others")
        }
        result[kind] = shares(value >= guard.detector.value, before, copied.reshape(-1, count), given)
        result[kind] |= {"outcomes": dict(Counter(d.outcome for d in decisions)), "extra_nfe": costs}
    return result


def shares(flagged, before, after, given):
    """Shares of images [captions, images] that are flagged, copies before and after, and given out."""
    hits, count = int(flagged[:, 0].sum()), len(flagged)
    _, low, high = mean_difference(after.mean(1), before.mean(1), np.arange(count))
    return {
        "captions": count, "images": flagged.size, "flagged": float(flagged.mean()),
        "flagged_first_image": [hits, count, *clopper_pearson(hits, count)],
        "given_out": float(given.mean()), "copies_bare": float(before.mean()), "copies_guarded": float(after.mean()),
        "copies_change": [float(after.mean() - before.mean()), low, high],
        "copies_among_given_out": float(after.sum() / max(1, given.sum())),
    }  # fmt: skip


def sets(bed, most=None):
    """(kind, captions, images of each); with `most` evenly spaced captions of either kind."""
    chosen = (("memorized", bed.memorized, DRAWS[bed.name]), ("others", bed.others, 1))
    if most is None:
        return chosen
    return tuple(
        (k, [t[i * len(t) // n] for i in range(min(n, len(t)))], c) for (k, t, c), n in zip(chosen, most, strict=True)
    )


def mixed(bed, calibration):
    """Calls of eight, one of them with a memorized caption: what the others pay."""
    texts = [t for i, m in enumerate(bed.memorized[:6]) for t in (*bed.others[7 * i : 7 * i + 7], m)]
    with guarded(bed, calibration, "refuse", "anisotropy", False) as guard:
        generate(bed, texts, [0] * len(texts), 8)
    extra = [d.nfe for d in guard.decisions if d.outcome == "passed"]
    return {"calls": len(texts) // 8, "passing": len(extra), "mean": float(np.mean(extra)), "max": float(np.max(extra))}


def overhead(bed, calibrations, prompts=4, repeats=5):
    """Seconds of calls of one image that passes, bare and behind each guard by turns, and what the extra is made of."""
    loose = {
        name: Calibration(c.threshold.model_copy(update={"value": 1e9}), None, (), 0)
        for name, c in calibrations.items()
    }
    times, extra = {name: [] for name in ("bare", *loose)}, {}
    texts = bed.others[:prompts]
    for repeat in range(repeats + 1):  # the first warms up
        for name in times:
            if name == "bare":
                started = time.process_time()
                generate(bed, texts, [repeat] * prompts, 1)
                spent = time.process_time() - started
            else:
                with guarded(bed, loose[name], "refuse", "anisotropy", False) as guard:
                    generate(bed, bed.others[-1:], [0], 1)  # what a guard evaluates once in its life
                    started = time.process_time()
                    generate(bed, texts, [repeat] * prompts, 1)
                    spent = time.process_time() - started
                extra[name] = [d.nfe for d in list(guard.decisions)[1:]]
            if repeat:
                times[name].append(spent / prompts)
    denoiser, network = bed.target.need_denoiser(), []
    with torch.no_grad():
        started = time.process_time()
        for text in texts * 4:
            cond = denoiser.encode_prompts([text])
        encoding = (time.process_time() - started) / (4 * prompts)
        x, t = torch.randn(1, *denoiser.sample_shape), denoiser.schedule.sampling_times(bed.sampling.steps)[0]
        for _ in range(60):
            started = time.process_time()
            denoiser.predict(x, t, cond)
            network.append(time.process_time() - started)
    rows = {"bare": {"seconds": statistics.median(times["bare"]), "range": [min(times["bare"]), max(times["bare"])]}}
    for name in loose:
        ratios = [a / b for a, b in zip(times[name], times["bare"], strict=True)]
        more = [a - b for a, b in zip(times[name], times["bare"], strict=True)]
        rows[name] = {
            "seconds": statistics.median(times[name]), "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)], "extra_seconds": statistics.median(more),
            "extra_seconds_range": [min(more), max(more)],
            "extra_nfe_mean": float(np.mean(extra[name])), "extra_nfe_max": float(np.max(extra[name])),
        }  # fmt: skip
    return {
        "clock": "CPU seconds of one thread", "images": prompts, "repeats": repeats, "rows": rows,
        "seconds_of_encoding_a_prompt": encoding, "seconds_of_an_evaluation": statistics.median(network),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beds", default="digits,photos")
    parser.add_argument("--again", help="compute parts again whose name begins so")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("diffmem.guard").setLevel(logging.CRITICAL)
    results = Results(options.again)
    for name in options.beds.split(","):
        bed = Bed(name)
        counts = {"memorized": len(bed.memorized), "reference": len(bed.reference), "others": len(bed.others)}
        results.part(f"{name}/captions", lambda counts=counts: counts)
        chosen, seen = {}, {}
        for detector, how in bed.detectors().items():
            made = results.part(
                f"{name}/threshold/{detector}/0.05",
                lambda bed=bed, how=how: dm.guard.calibrate(bed.target, bed.reference, 0.05, **how).as_dict(),
            )
            for rate in RATES:
                found = results.part(
                    f"{name}/threshold/{detector}/{rate:g}",
                    lambda bed=bed, r=rate, made=made: at_rate(bed, Calibration.from_dict(made), r).as_dict(),
                )
                chosen[detector, rate] = Calibration.from_dict(found)
            tight = chosen[detector, 0.05]
            seen[detector] = results.part(f"{name}/logged/{detector}", lambda bed=bed, c=tight: logged(bed, c))
            for rate in RATES:
                found = refused(chosen[detector, rate], seen[detector])
                results.part(f"{name}/refuse/{detector}/{rate:g}", lambda found=found: found)
            results.part(f"{name}/mixed calls/{detector}/0.05", lambda bed=bed, c=tight: mixed(bed, c))
        at = {detector: chosen[detector, 0.05] for detector in list(bed.detectors())[:3]}
        results.part(f"{name}/overhead", lambda bed=bed, at=at: overhead(bed, at))
    for name in options.beds.split(","):  # last, because it takes longest
        bed = Bed(name)
        mitigation = parse_mitigation(MITIGATION)
        for rate in reversed(RATES):
            for detector in LADDERS:
                calibration = Calibration.from_dict(results.parts[f"{name}/threshold/{detector}/{rate:g}"])
                one = results.parts[f"{name}/logged/{detector}"]
                results.part(
                    f"{name}/mitigate with index/{detector}/{rate:g}",
                    lambda bed=bed, c=calibration, m=mitigation, one=one: mitigated(bed, c, m, one),
                )
    results.write()


if __name__ == "__main__":
    main()
