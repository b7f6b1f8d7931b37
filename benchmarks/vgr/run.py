"""Volume growth rate: every estimator against measured truth, on several training seeds and on a subset of CIFAR-10.

Models: the unconditional digits testbed (seed 0 ships; others are trained with `python -m diffmem.testbeds.digits.train --kind
unconditional --seed N` and measured with `... .measure`), and, with --data, a small UNet trained from scratch on some
pictures at 16x16 (CIFAR-10: a folder with train.parquet and heldout.parquet; Fashion-MNIST: an .npz with xtr and xte), the
first --repeated of them --times times, with --mirrors also all their mirrors. Truth: how many of a model's own samples copy
an image (d1/d2 < 1/3).

Groups: memorized (plants, at least one hit), member (seen once, no hit; with --data trained without a hit), heldout, and with
--data mirror: the mirrors of memorized images.
Resumable: rows of every model are kept in its run directory under --work.

    python benchmarks/vgr/run.py --work DIR [--models seed=DIR ...] [--data FOLDER|FILE --name NAME] [--images 12]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from scipy.stats import kendalltau, mannwhitneyu, spearmanr, ttest_ind

from diffmem.bench.rows import separation
from diffmem.data.images import load_images
from diffmem.models.ode import sample
from diffmem.models.target import Target
from diffmem.randomness import gaussian
from diffmem.runs.provenance import provenance
from diffmem.runs.store import RunStore
from diffmem.stages.measure.measure import measure
from diffmem.testbeds import digits
from diffmem.testbeds.digits.captions import shuffled
from diffmem.testbeds.digits.data import to_bytes

SCORES = {
    "digits": (
        "vgr-bottom:k=8,steps=25", "vgr-likelihood:probes=4,steps=25", "vgr-subspace:k=16,steps=25",
        "vgr-paper:k=16,steps=200",
    ),
    "pictures": (
        "vgr-bottom:k=8,steps=25", "vgr-likelihood:probes=4,steps=25", "vgr-subspace:k=16,steps=25",
        "vgr-paper:k=16,steps=200",
    ),
}  # fmt: skip
FULL = ("vgr-subspace:steps=25",)
"""With --full, on seed 0: all directions (k = d = 64)."""
PRIOR = "+prior"
CONTRASTS = {
    "memorized_vs_members": (("memorized",), ("member",)),
    "trained_vs_heldout": (("memorized", "member"), ("heldout",)),
    "memorized_vs_heldout": (("memorized",), ("heldout",)),
    "memorized_vs_mirrors": (("memorized",), ("mirror",)),
    "mirrors_vs_heldout": (("mirror",), ("heldout",)),
}
GROUPS = ("memorized", "member", "heldout", "mirror")
SIZE, SAMPLES = 16, 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=[], help="seed=FOLDER of further digits models with their truth")
    parser.add_argument("--data", type=Path, help="pictures: a folder or an .npz file")
    parser.add_argument("--name", default="cifar10", help="with --data: name of the model in the result")
    parser.add_argument("--trained", type=int, default=64, help="with --data: training pictures")
    parser.add_argument("--repeated", type=int, default=0, help="with --data: how many of them are seen more often")
    parser.add_argument("--times", type=int, default=40, help="with --data: how often as often those are seen")
    parser.add_argument("--mirrors", action="store_true", help="with --data: train on mirrors, too")
    parser.add_argument("--skip-digits", action="store_true", help="only the pictures of --data")
    parser.add_argument("--full", action="store_true", help="on the digits model of seed 0 also all 64 directions")
    parser.add_argument("--images", type=int, default=12, help="per group")
    parser.add_argument("--steps", type=int, default=3000, help="training steps with --data")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("result.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = json.loads(options.out.read_text()) if options.out.exists() else {"models": {}}
    jobs = {"digits-seed-0": (digits.model_path("unconditional"), digits.truth("unconditional"))}
    if options.skip_digits:
        jobs = {}
    for text in options.models:
        seed, _, folder = text.partition("=")
        jobs[f"digits-seed-{seed}"] = (
            Path(folder), pq.read_table(Path(folder) / "truth_unconditional.parquet").to_pylist(),
        )  # fmt: skip
    for name, (folder, truth) in jobs.items():
        pixels, groups, hits = digits_images(truth, options.images)
        scores = SCORES["digits"] + (FULL if options.full and name == "digits-seed-0" else ())
        entry = measured(options.work / name, Target.from_pretrained(folder), pixels, groups, hits, scores)
        report["models"][name] = entry | {"samples": sum(row["hits"] for row in truth)}
        keep(report, options)
    if options.data is not None:
        target, pixels, groups, hits, facts = trained_on_pictures(options)
        entry = measured(options.work / options.name, target, pixels, groups, hits, SCORES["pictures"])
        report["models"][options.name] = entry | facts
        keep(report, options)


def keep(report, options):
    report |= {"provenance": provenance().model_dump(mode="json")}
    report["together"] = together(report["models"])
    options.out.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    draw(report["models"], options.out.with_suffix(".png"))


def digits_images(truth, count):
    """Pixels by id, group of each id, hits of each id."""
    data = digits.load()
    found = {row["group"]: row["hits"] for row in truth}
    plants = [i for i in data.training if i.tier == "plant" and found.get(i.group, 0) > 0]
    once = [i for i in data.training if i.count == 1 and not found.get(i.group, 0)]
    picked = {
        "memorized": shuffled(plants, 0, "vgr", "memorized")[:count],
        "member": shuffled(once, 0, "vgr", "member")[:count],
        "heldout": shuffled(list(data.held_out), 0, "vgr", "heldout")[:count],
    }
    pixels = {image.id: to_bytes(image.pixels) for images in picked.values() for image in images}
    groups = {image.id: group for group, images in picked.items() for image in images}
    hits = {i.id: found.get(getattr(i, "group", i.id), 0) for images in picked.values() for i in images}
    return pixels, groups, hits


def measured(place, target, pixels, groups, hits, scores):
    """Measure every image with every score; the rows' figures, means, contrasts and correlations."""
    measure(target, pixels, list(scores), out=place, batch=12, silent=False)
    rows = RunStore(place).read("measures").to_pylist()
    values: dict[str, dict[str, float]] = {}
    cost, curves, errors = {}, {}, {}
    for label in dict.fromkeys(row["score"] for row in rows):
        mine = [row for row in rows if row["score"] == label]
        good = [row for row in mine if row["status"] == "ok"]
        errors[label] = len(mine) - len(good)
        values[label] = {row["image_id"]: row["value"] for row in good}
        parts = {row["image_id"]: json.loads(row["components"]) for row in good}
        if good and "prior" in next(iter(parts.values())) and not label.startswith("vgr-likelihood"):
            values[label + PRIOR] = {i: values[label][i] + parts[i]["prior"] for i in parts}
        cost[label] = {
            "nfe_per_image": float(np.mean([row["nfe"] for row in mine if row["nfe"]] or [np.nan])),
            "seconds_per_image": float(np.mean([row["seconds"] for row in mine if row["seconds"]] or [np.nan])),
        }
        curves[label] = group_curves(parts, groups)
    return {
        "n": {g: sum(1 for x in groups.values() if x == g) for g in GROUPS},
        "errors": errors, "cost": cost, "contrasts": contrasts(values, groups),
        "means": {
            label: {g: mean([v for i, v in by.items() if groups[i] == g]) for g in GROUPS}
            for label, by in values.items()
        },
        "hits_spearman": {label: hits_correlation(by, groups, hits) for label, by in values.items()},
        "spearman": between(values), "curves": curves,
    }  # fmt: skip


def mean(values):
    if not values:
        return None
    spread = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "standard_error": spread, "n": len(values)}


def contrasts(values, groups):
    rows = []
    for label, by in values.items():
        for name, (left, right) in CONTRASTS.items():
            a, b = (np.array([v for i, v in by.items() if groups[i] in side]) for side in (left, right))
            if len(a) < 2 or len(b) < 2:
                continue
            found = separation(a[:, None], b[:, None], (np.arange(len(a)), np.arange(len(a), len(a) + len(b))))
            rows.append(
                {"score": label, "contrast": name, "n_positives": len(a), "n_negatives": len(b),
                 **{k: found[k] for k in ("auroc", "auroc_low", "auroc_high")},
                 "welch_p": float(ttest_ind(a, b, equal_var=False).pvalue),
                 "mann_whitney_p": float(mannwhitneyu(a, b).pvalue)}
            )  # fmt: skip
    return rows


def hits_correlation(by, groups, hits):
    """Rank correlation of value and hits among the memorized images."""
    ids = [i for i in by if groups[i] == "memorized"]
    if len({hits[i] for i in ids}) < 2:
        return None
    found = (
        kendalltau([by[i] for i in ids], [hits[i] for i in ids]),
        spearmanr([by[i] for i in ids], [hits[i] for i in ids]),
    )
    return {"kendall": float(found[0].statistic), "spearman": float(found[1].statistic), "n": len(ids)}


def between(values):
    table = {}
    for one in values:
        for two in values:
            ids = sorted(set(values[one]) & set(values[two]))
            if one < two and len(ids) > 3:
                table[f"{one} | {two}"] = float(
                    spearmanr([values[one][i] for i in ids], [values[two][i] for i in ids])[0]
                )
    return table


def group_curves(parts, groups):
    curves = {}
    for group in GROUPS:
        found = [parts[i]["curve"] for i in parts if groups[i] == group and parts[i].get("curve")]
        if found:
            curves[group] = [[float(x) for x in point] for point in np.mean(np.array(found, float), axis=0)]
    return curves


def together(models):
    """AUROC per score and contrast over the digits models: mean, least, greatest, number of training seeds."""
    found: dict[tuple[str, str], list[float]] = {}
    for name, entry in models.items():
        for row in entry["contrasts"] if name.startswith("digits") else []:
            found.setdefault((row["score"], row["contrast"]), []).append(row["auroc"])
    return [
        {"score": s, "contrast": c, "auroc_mean": float(np.mean(v)), "auroc_least": min(v), "auroc_greatest": max(v),
         "training_seeds": len(v)}
        for (s, c), v in found.items()
    ]  # fmt: skip


def pictures(options):
    """As many training pictures and held-out ones as --trained says, at 16x16."""
    if options.data.suffix == ".npz":
        arrays = np.load(options.data)
        sides = [[Image.fromarray(a) for a in arrays[key][: options.trained]] for key in ("xtr", "xte")]
    else:
        files = ("train.parquet", "heldout.parquet")
        sides = [[i.image for i in load_images(options.data / f).items(0, options.trained)] for f in files]
    return [[i.resize((SIZE, SIZE), Image.Resampling.BOX) for i in side] for side in sides]


def trained_on_pictures(options):
    """A small UNet trained from scratch on some pictures at 16x16, with its truth."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    from diffmem.training.data import TrainingImage, TrainingSet
    from diffmem.training.loop import train
    from diffmem.training.plan import TrainPlan, check_plan

    trained, heldout = pictures(options)
    mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in trained]
    times = [options.times if i < options.repeated else 1 for i in range(len(trained))]
    images = tuple(TrainingImage(f"{i:04d}", x, (), None, times[i]) for i, x in enumerate(trained))
    mirrors = tuple(TrainingImage(f"mirror-{i:04d}", x, (), None, times[i]) for i, x in enumerate(mirrored))
    seen = images + mirrors if options.mirrors else images
    channels = len(trained[0].getbands())
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=SIZE, in_channels=channels, out_channels=channels, layers_per_block=1, block_out_channels=(32, 64, 64),
        norm_num_groups=8, attention_head_dim=16,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    target = Target.from_pipeline(DDPMPipeline(unet, scheduler))
    plan = check_plan(
        {"model": {"base": "given"}, "data": {"images": "given", "captions": "none"},
         "optimizer": {"steps": options.steps, "batch": 32, "rate": 1e-3, "schedule": "cosine", "warm_up": 100,
                       "ema": 0.995, "weight_decay": 0.0}},
        TrainPlan, "the plan",
    )  # fmt: skip
    folder = options.work / f"{options.name}-model"
    if not (folder / "model").exists():
        data = TrainingSet(seen, f"{options.name}-{len(seen)}-{options.repeated}-{options.times}", {})
        train(plan, folder, data=data, target=target, device="cpu", silent=False)
    target = Target.from_pretrained(folder / "model")
    hits = copies(target, seen)
    groups = {i.id: "memorized" if hits[i.id] else "member" for i in images}
    groups |= {m.id: "mirror" for i, m in zip(images, mirrors, strict=True) if hits[i.id]}
    groups |= {f"held-{n:04d}": "heldout" for n in range(len(heldout))}
    pixels = {i.id: i.image for i in images + mirrors} | {f"held-{n:04d}": i for n, i in enumerate(heldout)}
    for group in GROUPS:
        names = [name for name, g in groups.items() if g == group]
        for name in shuffled(names, 0, "vgr", group)[2 * options.images :]:
            del groups[name]
    facts = {
        "trained_images": len(images), "mirrors": options.mirrors, "repeated": options.repeated, "times": options.times,
        "size": SIZE, "training_steps": options.steps, "samples": SAMPLES,
        "copied_images": sum(1 for i in seen if hits[i.id]),
        "copied_repeated": sum(1 for i in images[: options.repeated] if hits[i.id]),
        "share_of_samples_copied": sum(hits.values()) / SAMPLES,
    }  # fmt: skip
    return target, {i: pixels[i] for i in groups}, groups, {i.id: hits.get(i.id, 0) for i in images + mirrors}, facts


def copies(target, images):
    """How many of the model's samples copy each training image: d1/d2 < 1/3, image and mirror counted apart."""
    denoiser = target.need_denoiser()
    reference = np.stack([np.asarray(i.image, np.float32).reshape(-1) / 127.5 - 1 for i in images])
    hits = {i.id: 0 for i in images}
    for start in range(0, SAMPLES, 128):
        noise = torch.stack([gaussian(denoiser.sample_shape, 20000, "cifar10", i) for i in range(start, start + 128)])
        with torch.no_grad():
            made = sample(denoiser, noise, denoiser.null(), 20).clamp(-1, 1).movedim(1, -1).reshape(128, -1).numpy()
        distance = np.sqrt(((made[:, None] - reference[None]) ** 2).mean(2))
        order = np.argsort(distance, axis=1)
        first, second = (np.take_along_axis(distance, order[:, k : k + 1], 1)[:, 0] for k in (0, 1))
        for nearest in order[first / second < 1 / 3, 0]:
            hits[images[nearest].id] += 1
    return hits


def draw(models, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [
        (n, s) for n in models for s in models[n]["curves"] if s.startswith("vgr-bottom") and models[n]["curves"][s]
    ]
    if not shown:
        return
    figure, axes = plt.subplots(1, len(shown), figsize=(4.2 * len(shown), 3.6), squeeze=False, layout="constrained")
    for axis, (name, score) in zip(axes[0], shown, strict=True):
        for group, color in (("memorized", "#c0392b"), ("member", "#2e6da4"), ("heldout", "#7f8c8d")):
            curve = np.array(models[name]["curves"][score].get(group, np.zeros((0, 2))))
            if len(curve):
                axis.plot(curve[:, 0], curve[:, 1], color=color, label=group)
        axis.set_xscale("log")
        axis.set_title(f"{name}\n{score}", fontsize=9)
        axis.set_xlabel("noise, sigma / alpha")
        axis.set_ylabel("growth of log volume, nats")
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
