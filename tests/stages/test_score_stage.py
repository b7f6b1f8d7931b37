"""The scoring stage: rows, statuses, resume, shards, bad prompts, refusals."""

import json

import numpy as np
import pytest
import torch
from tests.tiny import tiny_ddpm, tiny_sd

from diffmem.data.prompts import load_prompts
from diffmem.errors import IncompatibleRun
from diffmem.models.target import Target
from diffmem.stages.score.score import score
from diffmem.testbeds.closed_form import empirical_bayes

SCORES = ["score-difference", "alignment", "anisotropy:weights=1/2", "text-uppercase"]


@pytest.fixture(scope="module")
def memorizer():
    images = torch.randn(30, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Target.from_denoiser(empirical_bayes(images, [f"plant {i}" for i in range(30)], dtype=torch.float32))


def rows(run):
    return {
        r["key"]: (r["prompt_id"], r["score"], r["draw"], r["status"], r["value"])
        for r in run.store.read("scores").to_pylist()
    }


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key][:4] == b[key][:4]
        assert a[key][4] == pytest.approx(b[key][4], rel=1e-5, abs=1e-5)


def test_a_perfect_memorizer_is_seen_by_every_score(memorizer):
    prompts = [f"plant {i}" for i in range(30)] + [f"never seen {i}" for i in range(30)]
    result = score(memorizer, prompts, ["score-difference", "alignment", "anisotropy"], draws=2)
    # Unseen captions get the whole mixture: no difference at all, so the norm alone separates perfectly.
    values = {k: v.mean() for k, v in result.values("score-difference").items()}
    ids = [p.id for p in result.prompts]
    assert min(values[i] for i in ids[:30]) > max(values[i] for i in ids[30:])


def test_rows_carry_what_they_depend_on(memorizer, tmp_path):
    result = score(memorizer, ["plant 1", "x"], SCORES, draws=3, out=tmp_path / "run")
    table = result.run.store.read("scores").to_pylist()
    assert {(r["prompt_id"], r["score"], r["draw"]) for r in table} == {
        *((p, s, d) for p in ("000000", "000001") for s in ("score-difference", "alignment") for d in range(3)),
        *((p, s, None) for p in ("000000", "000001") for s in ("anisotropy:weights=1.0/2.0", "text-uppercase")),
    }
    assert all(r["status"] == "ok" for r in table)
    norm, cosine = (result.values(s)["000000"] for s in ("score-difference", "alignment"))
    combined = next(r for r in table if r["prompt_id"] == "000000" and r["score"].startswith("anisotropy"))
    assert combined["value"] == pytest.approx(np.mean(norm + 2 * cosine))
    assert json.loads(combined["components"])["per_draw"] == pytest.approx(list(norm + 2 * cosine))
    texts = result.run.store.read("prompts").to_pylist()
    assert [r["text"] for r in texts] == ["plant 1", "x"]


def test_the_same_command_does_nothing_again(memorizer, tmp_path):
    first = score(memorizer, ["plant 1", "x"], SCORES, out=tmp_path / "run")
    before = rows(first.run)
    parts = sorted((tmp_path / "run" / "parts").rglob("*.parquet"))
    again = score(memorizer, ["plant 1", "x"], SCORES, out=tmp_path / "run")
    assert again.nfe.total == 0
    assert rows(again.run) == before
    assert sorted((tmp_path / "run" / "parts").rglob("*.parquet")) == parts


def test_more_draws_more_prompts_and_more_scores_only_add_work(memorizer, tmp_path):
    score(memorizer, ["plant 1", "x"], ["score-difference"], draws=2, out=tmp_path / "run")
    more = score(memorizer, ["plant 1", "x", "plant 2"], SCORES, draws=3, out=tmp_path / "run")
    same(rows(more.run), rows(score(memorizer, ["plant 1", "x", "plant 2"], SCORES, draws=3).run))


def test_two_shards_equal_one_run(memorizer, tmp_path):
    prompts = [f"plant {i}" for i in range(12)]
    for i in range(2):
        score(memorizer, prompts, SCORES, out=tmp_path / "two", shard=(i, 2), micro_batch=5)
    both = score(memorizer, prompts, SCORES, out=tmp_path / "two")
    assert both.nfe.total == 0
    same(rows(both.run), rows(score(memorizer, prompts, SCORES).run))


def test_another_seed_model_or_noise_is_refused(memorizer, tmp_path):
    score(memorizer, ["x"], SCORES, out=tmp_path / "run")
    with pytest.raises(IncompatibleRun, match=r"score\.seed"):
        score(memorizer, ["x"], SCORES, seed=1, out=tmp_path / "run")
    with pytest.raises(IncompatibleRun, match=r"score\.noise"):
        score(memorizer, ["x"], SCORES, noise="per-prompt", out=tmp_path / "run")
    with pytest.raises(IncompatibleRun, match="model"):
        score(Target.from_pipeline(tiny_sd()), ["x"], SCORES, out=tmp_path / "run")


def test_given_noises_are_used_as_they_are(memorizer, tmp_path):
    from diffmem.randomness import noise_bank

    bank = noise_bank(0, range(4), (1, 4, 4))
    by_name, by_tensor = (
        score(memorizer, ["plant 3"], ["alignment"]),
        score(memorizer, ["plant 3"], ["alignment"], noises=bank),
    )
    assert by_name.values("alignment")["000000"] == pytest.approx(by_tensor.values("alignment")["000000"])
    other = score(memorizer, ["plant 3"], ["alignment"], noises=bank.flip(0))
    assert other.values("alignment")["000000"] == pytest.approx(by_tensor.values("alignment")["000000"][::-1])


def test_an_empty_prompt_is_an_error_row_and_the_others_go_on(memorizer, tmp_path):
    prompts = load_prompts(["plant 1", "  ", "x"])
    result = score(memorizer, prompts, SCORES, out=tmp_path / "run")
    table = result.run.store.read("scores").to_pylist()
    bad = {r["score"]: r for r in table if r["prompt_id"] == "000001"}
    assert set(bad) == {"score-difference", "alignment", "anisotropy:weights=1.0/2.0", "text-uppercase"}
    assert all(r["status"] == "error" and r["value"] is None and "empty" in r["error"] for r in bad.values())
    assert sum(r["status"] == "ok" for r in table) == 2 * (2 * 4 + 2)
    assert score(memorizer, prompts, SCORES, out=tmp_path / "run").nfe.total == 0


def test_a_score_that_cannot_run_says_why():
    result = score(Target.from_pipeline(tiny_ddpm()), ["x"], ["score-difference", "anisotropy", "text-uppercase"])
    assert "takes no prompts" in result.refused["score-difference"]
    assert "takes no prompts" in result.refused["anisotropy"]
    assert result.values("text-uppercase")["000000"].tolist() == [0.0]


def test_standardizing_on_too_few_prompts_is_skipped_with_the_reason(memorizer, tmp_path):
    result = score(memorizer, ["plant 1", "x"], ["anisotropy"], out=tmp_path / "run")
    assert "needs 20" in result.refused["anisotropy"]
    table = [r for r in result.run.store.read("scores").to_pylist() if r["score"] == "anisotropy"]
    assert [r["status"] for r in table] == ["skipped", "skipped"]
    again = score(memorizer, ["plant 1", "x"], ["anisotropy"], out=tmp_path / "run")
    assert "needs 20" in again.refused["anisotropy"]


def test_cut_prompts_are_reported(tmp_path):
    target = Target.from_pipeline(tiny_sd())
    result = score(target, ["abcdefghijklmnopqrstuvwxyz", "a"], ["score-difference"], out=tmp_path / "run")
    assert any("longer than the tokenizer" in note for note in result.notes)
    extras = [json.loads(r["extra"]) for r in result.run.store.read("prompts").to_pylist()]
    assert {"truncated": "opqrstuvwxyz"} in extras


def test_fitting_needs_five_distinct_prompts_of_each_label(memorizer):
    same_line = [f"the very same caption of one product line, number {i}" for i in range(30)]
    texts = same_line + [f"{word} over {word[::-1]}" for word in WORDS]
    prompts = labelled(texts, lambda i: i < 30)
    result = score(memorizer, prompts, ["anisotropy:weights=fitted", "text-ngram"], draws=2)
    for name in ("anisotropy:weights=fitted", "text-ngram"):
        assert "1 distinct prompts labelled memorized" in result.refused[name], "thirty near-duplicates are one group"


WORDS = ["".join(chr(97 + (7 * i + 5 * k) % 26) for k in range(5)) for i in range(20)]


def labelled(texts, label):
    prompts = load_prompts(texts)
    return type(prompts)(tuple(type(p)(p.id, p.text, label(i)) for i, p in enumerate(prompts)), "memory")


def test_fitted_weights_separate_and_unlabelled_prompts_get_a_value_too():
    images = torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = Target.from_denoiser(empirical_bayes(images, WORDS, dtype=torch.float32))
    texts = WORDS + [word[::-1] + "q" for word in WORDS]
    prompts = labelled(texts, lambda i: None if i % 10 == 9 else i < 20)
    result = score(target, prompts, ["anisotropy:weights=fitted", "text-ngram"], draws=2)
    assert not result.refused
    values = result.values("anisotropy:weights=fitted")
    assert len(values) == 40
    assert min(values[p.id].mean() for p in prompts[:20]) > max(values[p.id].mean() for p in prompts[20:])
    assert len(result.values("text-ngram")) == 40


def test_extra_columns_keep_their_texts_and_lose_only_nan(memorizer, tmp_path):
    prompts = load_prompts(["plant 1"])
    extra = {"note": "NaN bread", "number": float("nan"), "list": [1.5, float("inf")]}
    kept = type(prompts)(tuple(type(p)(p.id, p.text, extra=extra) for p in prompts), "memory")
    run = score(memorizer, kept, ["text-uppercase"], out=tmp_path / "run").run
    (row,) = run.store.read("prompts").to_pylist()
    assert json.loads(row["extra"]) == {"note": "NaN bread", "number": None, "list": [1.5, None]}
