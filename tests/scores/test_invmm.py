"""InvMM on models whose answer is known: what the prior reproduces, what is rare, what cannot be reached."""

import copy
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from diffmem.data.png import decode_png
from diffmem.models.families.callable import CallableDenoiser
from diffmem.models.schedule import FlowSchedule
from diffmem.scores.image.base import ImageItem
from diffmem.scores.image.invmm.check import Checker
from diffmem.scores.spec import parse_image_score
from diffmem.testbeds.closed_form import empirical_bayes

SHAPE = (1, 4, 4)
QUICK = "invmm:steps=60,every=5,noises=4,sampler_steps=8,halvings=4,give_up=0"


class Bench:
    def __init__(self, batch, stop_after=None):
        self.seed, self.batch, self.states, self.ticks, self.stop_after = 0, batch, {}, 0, stop_after

    def load(self, image_id):
        return copy.deepcopy(self.states.get(image_id))

    def save(self, image_id, state):
        json.dumps({k: v for k, v in state.items() if k not in ("values", "first", "second")}, allow_nan=False)
        self.states[image_id] = copy.deepcopy(state)

    def tick(self, note=""):
        self.ticks += 1
        if self.ticks == self.stop_after:
            raise KeyboardInterrupt


def pictures(count, seed=0):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def items_of(model, images, captions=None):
    captions = captions or [None] * len(images)
    return [
        ImageItem(f"i{k}", x, x, c, model.encode_prompts([c]) if c is not None else model.null())
        for k, (x, c) in enumerate(zip(images, captions, strict=True))
    ]


def measure(model, items, text=QUICK, batch=10):
    score = parse_image_score(text)
    score.check(model)
    return {r.id: r for r in score.run(model, items, Bench(batch))}


def memorizer(**more):
    """Four images: one holds most of the weight, one some, two little."""
    images = pictures(4)
    weights = torch.tensor([1.0, 0.3, 0.03, 0.03])
    return images, empirical_bayes(images, weights=weights, dtype=torch.float32, **more)


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].components["status"] == b[key].components["status"]
        assert a[key].components["steps"] == b[key].components["steps"]
        assert a[key].value == pytest.approx(b[key].value, rel=1e-3, abs=1e-6)
        assert a[key].evidence == pytest.approx(b[key].evidence, rel=1e-3, abs=1e-6)


def test_what_the_prior_always_reproduces_has_the_value_0_without_a_step():
    image = pictures(1)
    model = empirical_bayes(image)
    result = measure(model, items_of(model, image))["i0"]
    assert result.value == 0
    assert result.evidence > 0
    assert result.nfe.backward == 0
    assert result.components["steps"] == 0
    assert result.nfe.forward == 8 * 8


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "flow"])
def test_rare_images_are_further_from_the_prior_and_strangers_are_never_reached(prediction):
    images, model = memorizer(prediction=prediction, schedule=FlowSchedule() if prediction == "flow" else None)
    results = measure(model, items_of(model, torch.cat([images[:3], pictures(1, seed=9)])))
    often, seldom, rare, stranger = (results[f"i{k}"] for k in range(4))
    assert often.value < seldom.value < rare.value < math.inf == stranger.value
    assert often.evidence > seldom.evidence > rare.evidence > stranger.evidence
    assert rare.components["kl_refined"] <= rare.components["kl_raw"]
    assert rare.components["fresh_passed"] in range(9)
    assert stranger.components["status"] == "not reached"
    assert stranger.components["steps"] == 60
    for result in results.values():
        json.dumps(result.components, allow_nan=False)
        assert decode_png(result.png).size == (9 * 66 + 2, 64)


def test_strangers_are_ordered_by_how_near_they_came():
    image = 0.1 * pictures(1)
    model = empirical_bayes(image)
    strangers = image + torch.tensor([0.4, 0.6, 0.8])[:, None, None, None]
    results = measure(model, items_of(model, strangers), QUICK.replace("60", "10"))
    assert all(r.value == math.inf for r in results.values())
    assert results["i0"].evidence > results["i1"].evidence > results["i2"].evidence


def test_a_batch_gives_what_one_at_a_time_gives():
    images, model = memorizer()
    items = items_of(model, torch.cat([images, pictures(2, seed=9)]))
    same(measure(model, items, batch=10), measure(model, items, batch=1))
    same(measure(model, items, batch=10), measure(model, items[::-1], batch=2))


def test_time_is_shared_by_evaluations_whoever_leaves_first(monkeypatch):
    """A clock that jumps by 100 s once the batch has begun: what an image gets of them is its share of the evaluations."""
    clock = iter([0.0])
    monkeypatch.setattr(
        "diffmem.scores.image.invmm.batch.time", SimpleNamespace(perf_counter=lambda: next(clock, 100.0))
    )
    images, model = memorizer()
    found = measure(model, items_of(model, images))
    assert len({r.components["steps"] for r in found.values()}) > 1, "they leave at different times"
    spent = sum(r.nfe.total for r in found.values())
    last = list(found.values())[-1]
    assert last.seconds == pytest.approx(100 * last.nfe.total / spent)
    assert all(100 * r.nfe.total / spent <= r.seconds + 1e-9 < 100 for r in found.values())


@pytest.mark.parametrize("stop_after", [3, 17, 40])
def test_an_interrupted_inversion_goes_on_where_it_was(stop_after):
    images, model = memorizer()
    items = items_of(model, torch.cat([images[2:], pictures(1, seed=9)]))
    whole = measure(model, items, batch=2)
    score, bench, results = parse_image_score(QUICK), Bench(2, stop_after), {}
    with pytest.raises(KeyboardInterrupt):
        results.update({r.id: r for r in _collect(score.run(model, items, bench), results)})
    assert bool(bench.states) == (stop_after > 5)
    left = [item for item in items if item.id not in results]
    assert left
    bench.stop_after = None
    results.update({r.id: r for r in score.run(model, left, bench)})
    same(results, whole)
    for key in results:
        assert results[key].components["trace"] == whole[key].components["trace"]
        assert results[key].nfe == whole[key].nfe


def _collect(stream, results):
    for result in stream:
        results[result.id] = result
        yield result


def test_a_nan_ends_its_own_image_only():
    images, model = memorizer()

    def broken(x, t, tensors):
        output = model.forward(x, t, model.null().expand(len(x)))
        return torch.where(x[:, :1, :1, :1] > 50, torch.nan, output)

    other = CallableDenoiser(broken, SHAPE, schedule=model.schedule)
    bad = images[1].clone()
    bad[0, 0, 0] = 1e5
    items = items_of(other, torch.stack([images[0], bad, images[1]]))
    results = measure(other, items)
    assert results["i1"].value is None
    assert "NaN or infinite" in results["i1"].error
    assert results["i1"].components["status"] == "error"
    alone = measure(other, [items[0], items[2]])
    same({k: results[k] for k in ("i0", "i2")}, alone)


def test_captions_and_guidance_help_where_the_model_listens():
    images = pictures(4)
    captions = [f"c{i}" for i in range(4)]
    model = empirical_bayes(images, captions, dtype=torch.float32)
    named = measure(model, items_of(model, images[:1], captions[:1]))["i0"]
    unnamed = measure(model, items_of(model, images[:1], captions[:1]), QUICK + ",prompt=null")["i0"]
    assert named.value == 0 < unnamed.value
    assert unnamed.components["guidance"] == 1
    weak = empirical_bayes(images, captions, dtype=torch.float32)
    weak._log_weights_of = lambda prompt: torch.tensor([0.55, 0.15, 0.15, 0.15]).log() if prompt else weak.log_weights
    swept = measure(weak, items_of(weak, images[:1], captions[:1]))["i0"]
    fixed = measure(weak, items_of(weak, images[:1], captions[:1]), QUICK + ",guidance=1")["i0"]
    assert swept.components["guidance"] > 1
    assert swept.value < fixed.value


def test_the_paper_mode_reports_the_raw_value_and_checks_all_samples():
    images, model = memorizer()
    text = "invmm:mode=paper,similarity=l2-tiled,steps=300,noises=8,sampler_steps=8,weight=0.01,beta=0.9"
    result = measure(model, items_of(model, images[1:2]), text)["i0"]
    assert result.value == result.components["kl_raw"] >= result.components["kl_refined"]
    assert result.components["steps"] % 50 == 0
    assert all(row[-1] is not None for row in result.components["trace"])


def test_what_is_never_reached_is_checked_less_often_when_its_loss_stands_still():
    _, model = memorizer()
    stranger = items_of(model, pictures(1, seed=9))
    skipping = measure(model, stranger)["i0"]
    always = measure(model, stranger, QUICK + ",skip=false")["i0"]
    checks = [sum(row[-1] is not None for row in r.components["trace"]) for r in (skipping, always)]
    assert checks[0] < checks[1] == 13
    assert skipping.nfe.forward < always.nfe.forward
    assert skipping.nfe.backward == always.nfe.backward == 2 * 4 * 60
    score = parse_image_score(QUICK)
    assert always.nfe.forward <= score.estimate(model).forward


def test_a_search_that_its_own_loss_calls_hopeless_ends_early_and_others_are_as_before():
    images, model = memorizer()
    items = items_of(model, torch.cat([images, pictures(1, seed=9)]))
    text = QUICK.replace("steps=60", "steps=400").replace(",give_up=0", ",give_up=0.05")
    patient, hasty = measure(model, items, text.replace(",give_up=0.05", ",give_up=0")), measure(model, items, text)
    same({k: patient[k] for k in ("i0", "i1")}, {k: hasty[k] for k in ("i0", "i1")})
    stranger = hasty["i4"]
    assert stranger.value == math.inf and stranger.components["gave_up"] is True
    assert 20 <= stranger.components["steps"] < 200
    assert stranger.nfe.total < 0.5 * patient["i4"].nfe.total
    assert patient["i4"].components["gave_up"] is False and patient["i4"].components["steps"] == 400
    order = [sorted(found, key=lambda key: found[key].evidence) for found in (patient, hasty)]
    assert order[0] == order[1]


def test_fresh_noises_are_all_seen(monkeypatch):
    seen, ask = [], Checker.ask

    def watched(self, questions):
        answers = ask(self, questions)
        seen.extend((q.job.item.id, a) for q, a in zip(questions, answers, strict=True) if q.noise == "fresh")
        return answers

    monkeypatch.setattr(Checker, "ask", watched)
    images, model = memorizer()
    # Ids name the noises: the same image under several.
    items = [replace(item, id=f"{item.id}{k}") for item in items_of(model, images[1:2]) for k in range(12)]
    results = measure(model, items)
    assert len(seen) >= 8
    for name, answer in seen:
        assert len(answer.similarities) == 8
        assert results[name].components["fresh_passed"] == sum(s >= 0.925 for s in answer.similarities)
    assert any(answer.similarities[0] < 0.925 for _, answer in seen), "else giving up early would not show"


def test_what_is_kept():
    images, model = memorizer()
    result = measure(model, items_of(model, images[1:2]), QUICK + ",keep=true")["i0"]
    mu, log_var = result.tensors["mu"], result.tensors["log_var"]
    raw = 0.5 * float((mu**2 + log_var.exp() - log_var - 1).mean())
    assert result.components["kl_raw"] == pytest.approx(raw, rel=1e-5)
    scale = result.components["scale"]
    refined = 0.5 * float(((scale * mu) ** 2 + (scale * log_var).exp() - scale * log_var - 1).mean())
    assert result.value == pytest.approx(refined, rel=1e-5)
    assert measure(model, items_of(model, images[1:2]))["i0"].tensors is None
