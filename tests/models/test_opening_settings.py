"""Opening models: settings and tokenizers that no model has are refused, odd ones that it may have are kept."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from tests.models.saved_folders import edit, refused
from tests.tiny import tiny_ddpm, tiny_sd
from tests.tiny_families import FAMILIES

from diffmem.errors import ModelError, UsageError
from diffmem.models.generation import Sampling
from diffmem.models.target import Target


@pytest.mark.parametrize(
    "changes",
    [
        {"beta_start": 0.0, "beta_end": 0.0}, {"beta_start": float("nan")}, {"beta_end": float("inf")},
        {"beta_end": 1.5}, {"beta_start": -0.1}, {"trained_betas": [0.0] * 1000}, {"trained_betas": [0.1, "x"]},
        {"trained_betas": []}, {"num_train_timesteps": 0}, {"num_train_timesteps": 10**12},
        {"num_train_timesteps": "1000"}, {"beta_schedule": "nope"}, {"prediction_type": "nope"},
        {"prediction_type": None},
    ],
)  # fmt: skip
def test_impossible_schedules_are_refused_when_opening(folder, changes):
    edit(folder / "scheduler" / "scheduler_config.json", **changes)
    refused(folder)


@pytest.mark.parametrize(
    ("part", "name", "changes", "word"),
    [
        ("scheduler", "scheduler_config.json", {"rescale_betas_zero_snr": 7.5}, "true or false"),
        ("scheduler", "scheduler_config.json", {"clip_sample": "no"}, "true or false"),
        ("scheduler", "scheduler_config.json", {"timestep_spacing": 3}, "a text"),
        ("scheduler", "scheduler_config.json", {"steps_offset": "1"}, "a finite number"),
        ("unet", "config.json", {"center_input_sample": {"a": 1}}, "true or false"),
        ("unet", "config.json", {"norm_eps": "1e-5"}, "a finite number"),
        ("unet", "config.json", {"norm_eps": float("inf")}, "a small number"),
        ("unet", "config.json", {"norm_eps": 1e9}, "a small number"),
        ("text_encoder", "config.json", {"layer_norm_eps": -1}, "a small number"),
        ("tokenizer", "tokenizer_config.json", {"model_max_length": float("inf")}, "a number of tokens"),
        ("text_encoder", "config.json", {"layer_norm_eps": True}, "a number"),
        ("text_encoder", "config.json", {"rope_theta": True}, "rope_theta = True"),
        ("text_encoder", "config.json", {"num_hidden_layers": True}, "a number"),
        ("vae", "config.json", {"act_fn": 3}, "a text"),
        ("scheduler", "scheduler_config.json", {"clip_sample_range": 1e308}, "a finite number"),
        ("scheduler", "scheduler_config.json", {"sample_max_value": -1e13}, "a finite number"),
        ("vae", "config.json", {"scaling_factor": 1e9}, "scaling_factor"),
    ],
)
def test_settings_of_another_type_are_refused(folder, part, name, changes, word):
    edit(folder / part / name, **changes)
    refused(folder, word, *changes)


def test_settings_that_a_config_may_hold(folder, saved):
    edit(folder / "unet" / "config.json", only_cross_attention=[False, False], center_input_sample=0, dropout=0)
    edit(folder / "scheduler" / "scheduler_config.json", steps_offset=1, clip_sample=None, novel={"a": [1]})
    one, other = (Target.from_pretrained(place).denoiser for place in (folder, saved))
    x = torch.ones(1, *one.sample_shape)
    with torch.no_grad():
        assert torch.equal(*(d.predict(x, 500, d.encode_prompts(["a fox"])) for d in (one, other)))


class TestTokenizers:
    @pytest.mark.parametrize("left", [[], ["vocab.json"], ["merges.txt"]])
    def test_a_lost_vocabulary(self, folder, left):
        """transformers makes a tokenizer without words, and every prompt scores alike."""
        (folder / "tokenizer" / "tokenizer.json").unlink()
        for name in left:
            (folder / "tokenizer" / name).write_text("{}" if name.endswith("json") else "")
        refused(folder, "tokenizer", "no vocabulary")

    def test_the_vocabulary_of_another_model(self):
        from transformers import CLIPTokenizer

        pipe = tiny_sd()
        pipe.tokenizer = CLIPTokenizer(
            vocab={"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}, merges=[], model_max_length=16
        )
        with pytest.raises(ModelError, match=r"knows 3 tokens and text_encoder has embeddings for 514"):
            Target.from_pipeline(pipe)

    @pytest.mark.parametrize("limit", [None, 0, -1, 10**30, "16", [16], 17, 1e308])
    def test_a_limit_beyond_the_encoders_positions(self, folder, limit):
        edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=limit)
        refused(folder, "model_max_length" if limit not in ("16", [16], None) else "tokenizer")

    def test_fewer_tokens_than_positions_are_another_model_that_is_seen_rightly(self, folder):
        edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=8)
        target = Target.from_pretrained(folder)
        assert target.check("a fox").passed
        assert target.denoiser.encode_prompts(["a"]).tensors["encoder_hidden_states"].shape[1] == 8

    @pytest.mark.parametrize("kind", ["bos_token", "unk_token", "pad_token", "eos_token"])
    def test_an_empty_special_token(self, folder, kind):
        edit(folder / "tokenizer" / "tokenizer_config.json", **{kind: ""})
        refused(folder, "tokenizer")

    def test_a_special_token_without_an_embedding(self, folder):
        edit(folder / "tokenizer" / "tokenizer_config.json", pad_token="nope")
        refused(folder, "nope", "no embedding")

    @pytest.mark.parametrize(("end", "right"), [(2, True), (-514, False), (7, False)])
    def test_the_end_of_a_text_at_which_pooling_looks(self, tmp_path, end, right):
        pipe = FAMILIES["sdxl"]()
        pipe.text_encoder_2.config.eos_token_id = end
        if right:
            assert Target.from_pipeline(pipe).denoiser.family == "sdxl"
            return
        with pytest.raises(ModelError, match="eos_token_id"):
            Target.from_pipeline(pipe)


def test_a_decoder_that_gives_no_numbers_fails_the_check():
    """Its images are black, like those that a safety checker has blacked out."""
    pipe = tiny_sd()
    with torch.no_grad():
        pipe.vae.decoder.conv_in.weight.fill_(float("nan"))
    result = Target.from_pipeline(pipe).check("a fox")
    assert not result.passed and "decoded images" in result.message


@pytest.mark.parametrize("betas", [[0.0] * 10, [0.5, float("nan")], [1.0, 1.0]])
def test_impossible_schedules_of_loaded_pipelines(betas):
    pipe = tiny_sd()
    config = dict(pipe.scheduler.config)
    pipe.scheduler = DDIMScheduler.from_config(config, trained_betas=[1e-3] * 10)
    assert Target.from_pipeline(pipe).denoiser.schedule.t_max == 9
    pipe.scheduler = DDIMScheduler.from_config(config, trained_betas=betas)
    with pytest.raises(ModelError, match="noise levels"):
        Target.from_pipeline(pipe)


def test_continuous_times_are_refused():
    """No score asks the network at 0.25 ln(sigma), the only times at which such a network is ever run."""
    pipe = tiny_sd()
    pipe.scheduler = EulerDiscreteScheduler.from_config(
        pipe.scheduler.config,
        timestep_type="continuous",
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=700,
    )
    with pytest.raises(ModelError, match="continuous"):
        Target.from_pipeline(pipe)


@pytest.mark.parametrize("value", [None, 0, -8, "8", [8], [8, 8, 8], True, 8.5])
def test_a_size_that_is_none(tmp_path, value):
    tiny_ddpm().save_pretrained(tmp_path / "m")
    edit(tmp_path / "m" / "unet" / "config.json", sample_size=value)
    refused(tmp_path / "m")


@pytest.mark.parametrize(
    ("part", "key"),
    [("unet", "in_channels"), ("vae", "scaling_factor"), ("vae", "latent_channels"), ("unet", "out_channels")],
)
def test_nulls_in_configs(folder, part, key):
    edit(folder / part / "config.json", **{key: None})
    refused(folder)


@pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:99", "meta3", ""])
def test_a_device_that_is_not_there(saved, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if device == "":
        assert Target.from_pretrained(saved, device=None).denoiser is not None
        return
    with pytest.raises(UsageError, match="device"):
        Target.from_pretrained(saved, device=device)


SAMPLERS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "IPNDMScheduler", "CMStochasticIterativeScheduler")


@pytest.mark.parametrize("kept", [True, False], ids=["from another's config", "its own config"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_without_a_beta_schedule_generate_only(name, kept):
    """A config keeps the entries of the scheduler that it was made from, of which the class reads none."""
    import diffusers

    kind = getattr(diffusers, name)
    pipe = tiny_sd()
    pipe.scheduler = kind.from_config(pipe.scheduler.config) if kept else kind()
    target = Target.from_pipeline(pipe)
    assert target.denoiser is None and f"{name} has no beta schedule" in target.generates_only
    assert target.generate(["a fox"], [0], 0, Sampling(steps=2))[0].size == (16, 16)


def test_a_playground_generates_only(tmp_path):
    from diffusers import EDMDPMSolverMultistepScheduler
    from tests.tiny_families import sdxl

    pipe = sdxl()
    pipe.scheduler = EDMDPMSolverMultistepScheduler()
    pipe.save_pretrained(tmp_path / "model")
    target = Target.from_pretrained(tmp_path / "model")
    assert target.denoiser is None and "no beta schedule" in target.generates_only


@pytest.mark.parametrize("name", ["sigmoid", "laplace"])
def test_beta_schedules_that_ddpm_alone_has(name):
    from diffusers import DDPMScheduler

    pipe = tiny_ddpm()
    pipe.scheduler = DDPMScheduler(num_train_timesteps=200, beta_schedule=name)
    target = Target.from_pipeline(pipe)
    truth = pipe.scheduler.alphas_cumprod
    for t in (0, 50, 199):
        assert target.denoiser.schedule.at(t)[0] ** 2 == pytest.approx(float(truth[t]), rel=1e-5)
    assert target.check(sampling=Sampling(steps=2)).passed


@pytest.mark.parametrize("sort", ["a template without the prompt", "an encoder that is zero"])
def test_a_model_to_which_all_prompts_are_alike_fails_the_check(sort):
    pipe = FAMILIES["z-image"]() if "template" in sort else tiny_sd()
    assert Target.from_pipeline(pipe).check("a fox", Sampling(steps=1)).passed
    if "template" in sort:
        pipe.tokenizer.chat_template = "always the same"
    else:
        for weight in pipe.text_encoder.parameters():
            weight.data.zero_()
    result = Target.from_pipeline(pipe).check("a fox", Sampling(steps=1))
    assert result.passed is False and "one and the same conditioning" in result.message


def test_two_tokens_of_one_number_are_a_damaged_vocabulary(monkeypatch):
    pipe = tiny_sd()
    vocabulary = dict(pipe.tokenizer.get_vocab())
    first, second = list(vocabulary)[:2]
    monkeypatch.setattr(pipe.tokenizer, "get_vocab", lambda: vocabulary | {first: vocabulary[second]})
    with pytest.raises(ModelError, match="several tokens one number"):
        Target.from_pipeline(pipe)


def test_a_sequence_that_no_model_reads_is_refused(tmp_path):
    FAMILIES["flux"]().save_pretrained(tmp_path)
    edit(tmp_path / "scheduler" / "scheduler_config.json", max_image_seq_len=10**9)
    refused(tmp_path, "max_image_seq_len", "at most")
