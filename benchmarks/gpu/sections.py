"""The sections of `run.py`: each builds what it needs, measures, and gives back figures; none catches its own failure."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "fullsize"))
sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.tiny import picture, tiny_sd
from tests.tiny_families import sdxl

import diffmem as dm
import models
from diffmem.copies.backends import TorchBackend
from diffmem.copies.descriptors import make_descriptor
from diffmem.copies.neighbors import top_k
from diffmem.data.reference import reference_prompts
from diffmem.stages.score.score import score as score_prompts

REPEATS = 5


@dataclass(frozen=True)
class Setting:
    """Whether models are tiny, and where they run."""

    tiny: bool
    device: str

    def wait(self):
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def pipeline(self, name):
        """Real configuration, random bfloat16 weights, made on the device."""
        torch.manual_seed(0)
        if self.tiny:
            return (tiny_sd if name == "sd1" else sdxl)()
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(self.device):
            made = models.MODELS[name](None)
        torch.set_default_dtype(torch.float32)
        for part in made.components.values():
            if isinstance(part, torch.nn.Module):
                part.to(self.device, torch.bfloat16).eval()
        made.set_progress_bar_config(disable=True)
        return made

    def target(self, name):
        return dm.Target.from_pipeline(self.pipeline(name), name=name)

    def timed(self, work, repeats=REPEATS):
        """Median seconds of a call after one to warm up."""
        work()
        found = []
        for _ in range(1 if self.tiny else repeats):
            self.wait()
            begun = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - begun)
        return statistics.median(found)

    def peak(self):
        """Peak memory since the last call, in MB; None on a CPU."""
        if not self.device.startswith("cuda"):
            return None
        peak = torch.cuda.max_memory_allocated() / 1e6
        torch.cuda.reset_peak_memory_stats()
        return peak


def bare(setting, target, rows):
    """Rows per second of the network module alone, called with the arguments that diffmem gives it."""
    denoiser = target.denoiser
    caught = {}

    def catch(module, arguments, named):
        caught["call"] = (arguments, named)

    hook = denoiser.network.register_forward_pre_hook(catch, with_kwargs=True)
    x = torch.randn(rows, *denoiser.sample_shape)
    with torch.no_grad():
        denoiser.predict(x, denoiser.schedule.sampling_times(1)[0], denoiser.encode_prompts(["a fox"]))
    hook.remove()
    arguments, named = caught["call"]
    with torch.no_grad():
        return rows / setting.timed(lambda: denoiser.network(*arguments, **named))


def network(setting):
    """Bare throughput of both networks by batch."""
    found = {}
    for name in ("sd1", "sdxl"):
        target = setting.target(name)
        sizes = (1, 2) if setting.tiny else (1, 8, 32, 64)
        found[name] = {
            "latent": list(target.denoiser.sample_shape),
            "rows_per_second": {size: bare(setting, target, size) for size in sizes}, "peak_mb": setting.peak(),
        }  # fmt: skip
        del target
        if setting.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return found


def score_share(setting, target, rows):
    """`score` from prompts to rows on the disk against the bare network: 1 evaluation per row and draw and one per draw."""
    texts = [prompt.text for prompt in reference_prompts()]
    prompts = [f"{texts[i % len(texts)]} {i}" for i in range(2 * rows if setting.tiny else 8 * rows)]
    alone = bare(setting, target, rows)
    score_prompts(target, prompts[:rows], ["score-difference"], draws=1, micro_batch=rows)
    with tempfile.TemporaryDirectory() as folder:
        setting.wait()
        begun = time.perf_counter()
        result = score_prompts(
            target, prompts, ["score-difference"], draws=1, micro_batch=rows, out=Path(folder, "run")
        )
        seconds = time.perf_counter() - begun
    return {"bare": alone, "score": result.nfe.total / seconds, "score_share": result.nfe.total / seconds / alone}


def score(setting):
    """Stable Diffusion 1 at micro-batch 64."""
    target = setting.target("sd1")
    rows = 4 if setting.tiny else 64
    return score_share(setting, target, rows) | {"micro_batch": rows, "peak_mb": setting.peak()}


def generate(setting):
    """Images in batches against the pipeline's own call on the same batch."""
    target = setting.target("sd1")
    rows, steps = (2, 2) if setting.tiny else (16, 10)
    prompts = [f"a fox {i}" for i in range(rows)]
    sampling = dm.Sampling(steps=steps)

    def own():
        with torch.no_grad():
            target.pipeline(prompts, num_inference_steps=steps)

    alone = setting.timed(own, 3)
    ours = setting.timed(lambda: target.generate(prompts, list(range(rows)), 0, sampling), 3)
    return {
        "batch": rows, "steps": steps, "pipeline_seconds": alone, "diffmem_seconds": ours, "generate_share": alone / ours,
        "peak_mb": setting.peak(),
    }  # fmt: skip


def images(setting):
    """One image measured by InvMM and by the volume growth rate."""
    target = setting.target("sd1")
    side = 16 if setting.tiny else 512
    image = picture(3).resize((side, side))
    found = {}
    for spec in ("invmm:steps=4", "vgr"):
        begun = time.perf_counter()
        result = dm.measure(target, [image], spec, batch=2 if setting.tiny else 16)
        row = result.run.store.read("measures", ["status", "error", "nfe"]).to_pylist()[0]
        found[spec] = {"seconds": time.perf_counter() - begun, **row}
    return found | {"peak_mb": setting.peak()}


def product(setting, left, right, dtype):
    """Seconds of one bare product of all queries with a chunk, nothing else done with it."""
    a, b = (torch.from_numpy(x).to(setting.device, dtype) for x in (left, right))
    return setting.timed(lambda: a @ b.T)


def search(setting):
    """Exact search with top-k against the bare product on the same device, the corpus streaming from the host in float16."""
    queries, chunk, chunks, width, k = (64, 500, 3, 32, 10) if setting.tiny else (10_000, 100_000, 100, 512, 64)
    random = np.random.default_rng(0)
    mine = random.normal(size=(queries, width)).astype(np.float32)
    held = random.normal(size=(chunk, width)).astype(np.float16)
    kind = torch.float16 if setting.device.startswith("cuda") else torch.float32
    seconds = {
        name: product(setting, mine, held, dtype) * chunks
        for name, dtype in (("bare_half", kind), ("bare_float32", torch.float32))
    }
    backend = TorchBackend(setting.device, chunk=chunk, queries=queries)
    begun, done = time.perf_counter(), 0

    def parts():
        nonlocal done
        for number in range(chunks):
            if time.perf_counter() - begun > 25:
                return  # the rest is computed from these
            done += 1
            yield held.astype(np.float32) + np.float32(number)

    top_k(mine, parts(), k, backend=backend)
    taken = (time.perf_counter() - begun) * chunks / done
    return {
        "queries": queries, "corpus": chunk * chunks, "width": width, "k": k, "measured_chunks": done, "seconds": seconds,
        "search_seconds": taken, "search_share": seconds["bare_float32"] / taken, "share_of_half": seconds["bare_half"] / taken,
        "peak_mb": setting.peak(),
    }  # fmt: skip


def describe(setting):
    """Pictures of 512 pixels described, from pixels in memory to vectors: the offline descriptor on the CPU of the machine."""
    count, side = (4, 32) if setting.tiny else (256, 512)
    pictures = [picture(i).resize((side, side)) for i in range(count)]
    maker = make_descriptor("l2-tiled", None, side=64, channels=3)
    seconds = setting.timed(lambda: maker.describe(pictures), 3)
    return {"pictures": count, "side": side, "descriptor": maker.name, "pictures_per_second": count / seconds}
