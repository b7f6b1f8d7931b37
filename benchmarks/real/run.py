"""What somebody with the weights runs in 30 GPU-minutes: Stable Diffusion 1.4 on the published list, and one SDXL LoRA.

The list is a table with the prompts and, if it has one, a column that says which are memorized (true, false); it is not part
of this repository. Each half is an audit: a row per prompt, a table, a page. How many prompts are taken follows from what
one evaluation and one image take on this device.

    python benchmarks/real/run.py --prompts LIST.csv --labels memorized --out runs/real
    python benchmarks/real/run.py --prompts LIST.csv --lora my-lora.safetensors --lora-images ./pictures --out runs/real
    python benchmarks/real/run.py --tiny --out runs/tiny     the same steps on tiny stand-ins of the same classes
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

import diffmem as dm
from diffmem.data.prompts import PromptList, load_prompts
from diffmem.randomness import seed_of
from diffmem.runs.provenance import provenance
from diffmem.runs.store import RunStore

DRAWS, IMAGES = 4, 4
SCORES = ["score-difference", "alignment", "text-uppercase"]


def seconds_per_prompt(target, sampling):
    """Scoring and images of one prompt, measured on eight and two prompts after a first one."""
    texts = [f"a photograph of a thing, number {i}" for i in range(9)]
    found = 0.0
    for count, work in (
        (8, lambda part: dm.score(target, part, SCORES, draws=DRAWS)),
        (
            2,
            lambda part: target.generate(
                [p for p in part for _ in range(IMAGES)], [*range(IMAGES)] * len(part), 0, sampling
            ),
        ),
    ):
        work(texts[:1])
        begun = time.perf_counter()
        work(texts[1 : count + 1])
        found += (time.perf_counter() - begun) / count
    return found


def part_of(prompts, most):
    """At most so many prompts: half of either label where there are labels, the same ones each time."""
    if len(prompts) <= most:
        return prompts
    order = sorted(prompts, key=lambda p: seed_of(0, "real", p.id))
    sides = [[p for p in order if p.label is side] for side in (True, False, None)]
    chosen = {p.id for side in sides for p in side[: max(1, most // sum(bool(s) for s in sides))]}
    return PromptList(tuple(p for p in prompts if p.id in chosen), prompts.source, prompts.column, prompts.id_column)


def write_rows(run, out):
    """One JSON line per prompt: text, label, and the mean of each score."""
    store = RunStore(run)
    rows = {r["prompt_id"]: {"id": r["prompt_id"], "prompt": r["text"], "memorized": r["label"]}
            for r in store.read("prompts").to_pylist()}  # fmt: skip
    for row in store.read("scores", ["prompt_id", "score", "value", "status"]).to_pylist():
        if row["status"] == "ok":
            rows[row["prompt_id"]].setdefault(row["score"], []).append(row["value"])
    mean = {i: {k: sum(v) / len(v) if isinstance(v, list) else v for k, v in row.items()} for i, row in rows.items()}
    out.write_text("".join(json.dumps(row) + "\n" for row in mean.values()))


def stable_diffusion(options, model, prompts):
    """Scores, images and their agreement on the list: no training set is needed."""
    target = dm.Target.from_pretrained(model, device=options.device, dtype=options.dtype)
    sampling = dm.Sampling(steps=2 if options.tiny else 50)
    each = seconds_per_prompt(target, sampling)
    most = len(prompts) if options.tiny else max(2, int(options.minutes * 60 * 0.75 / each))
    taken = part_of(prompts, most)
    folder = options.out / "stable-diffusion"
    run = dm.audit(
        target, taken, None, out=folder, scores=SCORES, draws=DRAWS, images_per_prompt=IMAGES, sampling=sampling,
        batch=options.batch, micro_batch=options.batch, silent=options.tiny,
    )  # fmt: skip
    write_rows(folder, options.out / "prompts.jsonl")
    summary = run.summary.as_dict()
    return {"seconds_per_prompt": each, "prompts": len(taken), "of": len(prompts), "scores": summary["scores"],
            "verdict": summary["verdict"]["sentence"], "page": str(next(folder.glob("*.html")))}  # fmt: skip


def lora(options, base, file, images):
    """A LoRA of SDXL against its base, on its own captions and pictures."""
    open_ = {"device": options.device, "dtype": options.dtype}
    folder = options.out / "lora"
    run = dm.audit(
        lambda: dm.Target.from_pretrained(base, lora=file, **open_), load_prompts(images), images,
        base=lambda: dm.Target.from_pretrained(base, **open_), out=folder, scores=SCORES[:1], draws=2, images_per_prompt=IMAGES,
        sampling=dm.Sampling(steps=2 if options.tiny else 30), batch=options.batch, silent=options.tiny,
    )  # fmt: skip
    return {"headline": run.summary.headline, "page": str(next(folder.glob("*.html")))}


def stand_ins(folder):
    """Tiny pipelines of the same classes, a list with labels, a LoRA and its pictures."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.tiny import picture, random_lora, tiny_sd
    from tests.tiny_families import sdxl

    folder.mkdir(parents=True, exist_ok=True)
    tiny_sd().save_pretrained(folder / "sd")
    pipe = sdxl()
    pipe.save_pretrained(folder / "sdxl")
    file, _ = random_lora(pipe, folder / "lora-weights")
    (folder / "list.csv").write_text("prompt,memorized\n" + "".join(f"a thing {i},{i < 4}\n" for i in range(8)))
    (folder / "pictures").mkdir(exist_ok=True)
    for i in range(4):
        picture(i).save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text(f"picture {i}")
    return folder / "sd", folder / "list.csv", folder / "sdxl", file, folder / "pictures"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="sd1.4")
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--labels", help="column of the list that says which prompts are memorized")
    parser.add_argument("--sdxl", default="stabilityai/stable-diffusion-xl-base-1.0")
    parser.add_argument("--lora")
    parser.add_argument("--lora-images", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--minutes", type=float, default=20, help="of the 30 for Stable Diffusion; the rest is the LoRA's"
    )
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    model, listed, base, file, images = options.model, options.prompts, options.sdxl, options.lora, options.lora_images
    if options.tiny:
        options.device, options.dtype, options.labels = "cpu", "float32", "memorized"
        model, listed, base, file, images = stand_ins(options.out / "stand-ins")
    if listed is None and file is None:
        parser.error(
            "give the published list (--prompts), or a LoRA with its pictures (--lora, --lora-images), or --tiny"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    result = {"provenance": provenance().model_dump(mode="json")}
    if listed is not None:
        result["stable_diffusion"] = stable_diffusion(options, model, load_prompts(listed, labels=options.labels))
        (options.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    if file is not None:
        result["lora"] = lora(options, base, file, images)
        (options.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "provenance"}, indent=1)[:4000])


if __name__ == "__main__":
    main()
