"""What a pipeline needs and what it was distilled to, recognised when it is opened; cost and check follow."""

import inspect

import diffusers
import pytest
import torch
from tests.tiny import tiny_autoencoder, tiny_ddpm, tiny_sd
from tests.tiny_families import FAMILIES

from diffmem.errors import CheckFailed, ModelError
from diffmem.models.families import denoiser_for
from diffmem.models.families._inputs import check_inputs
from diffmem.models.generation import Sampling, nfe_per_image
from diffmem.models.target import Target


def rebuilt(kind, pipe, **more):
    """A pipeline of another class of diffusers with the same components."""
    kind = getattr(diffusers, kind)
    parts = dict(pipe.components) | {"requires_safety_checker": False} | more
    taken = inspect.signature(kind.__init__).parameters
    return kind(**{name: part for name, part in parts.items() if name in taken})


def like(network, **changes):
    torch.manual_seed(0)
    config = {k: v for k, v in dict(network.config).items() if not k.startswith("_")}
    return type(network)(**(config | changes)).eval()


def controlnet(pipe):
    return {"controlnet": diffusers.ControlNetModel.from_unet(pipe.unet).eval()}


def wide(pipe):
    return {"unet": like(pipe.unet, in_channels=9)}


NEEDY = {
    "controlnet": ("StableDiffusionControlNetPipeline", tiny_sd, controlnet, "image"),
    "img2img": ("StableDiffusionImg2ImgPipeline", tiny_sd, None, "image"),
    "inpaint": ("StableDiffusionInpaintPipeline", tiny_sd, wide, "mask_image"),
    "pix2pix": ("StableDiffusionInstructPix2PixPipeline", tiny_sd, None, "image"),
    "pag-img2img": ("StableDiffusionPAGImg2ImgPipeline", tiny_sd, None, "image"),
    "cycle": ("CycleDiffusionPipeline", tiny_sd, None, "source_prompt"),
    "excite": ("StableDiffusionAttendAndExcitePipeline", tiny_sd, None, "token_indices"),
    "sdxl-img2img": ("StableDiffusionXLImg2ImgPipeline", FAMILIES["sdxl"], None, "image"),
    "sdxl-inpaint": ("StableDiffusionXLInpaintPipeline", FAMILIES["sdxl"], None, "mask_image"),
    "sd3-img2img": ("StableDiffusion3Img2ImgPipeline", FAMILIES["sd3"], None, "image"),
    "flux-img2img": ("FluxImg2ImgPipeline", FAMILIES["flux"], None, "image"),
    "flux-fill": ("FluxFillPipeline", FAMILIES["flux"], None, "image"),
    "flux-control": ("FluxControlPipeline", FAMILIES["flux"], None, "control_image"),
}


@pytest.mark.parametrize("classes", [{"num_class_embeds": 10}, {"class_embed_type": "timestep"}])
@pytest.mark.parametrize("kind", ["DDPMPipeline", "DDIMPipeline", "LDMPipeline"])
def test_a_unet_of_classes_is_refused_by_its_setting_with_the_way_on(kind, classes):
    """These pipelines' calls have no argument for the class, so that they fail on their own network."""
    parts = {"unet": like(tiny_ddpm().unet, **classes), "scheduler": diffusers.DDIMScheduler()}
    pipe = getattr(diffusers, kind)(**parts, **({"vqvae": tiny_autoencoder("vq")} if kind == "LDMPipeline" else {}))
    with pytest.raises(ModelError, match="takes class labels") as refused:
        Target.from_pipeline(pipe)
    assert next(iter(classes)) in str(refused.value) and "classes=[...]" in str(refused.value)


@pytest.mark.parametrize("name", NEEDY)
def test_a_pipeline_that_needs_more_than_a_prompt_is_refused_by_what_it_needs(name):
    kind, make, more, word = NEEDY[name]
    pipe = make()
    with pytest.raises(ModelError, match=f"needs more than a prompt.*{word}"):
        Target.from_pipeline(rebuilt(kind, pipe, **(more(pipe) if more else {})))


def test_a_plain_pipeline_with_a_wide_network_is_refused():
    pipe = tiny_sd()
    pipe.register_modules(unet=like(pipe.unet, in_channels=9))
    with pytest.raises(ModelError, match=r"9 channels.*VAE makes 4"):
        Target.from_pipeline(pipe)
    pipe = FAMILIES["flux"]()
    pipe.register_modules(transformer=like(pipe.transformer, in_channels=24))
    with pytest.raises(ModelError, match="24 channels"):
        Target.from_pipeline(pipe)


@pytest.mark.parametrize(
    ("name", "lost"),
    [("sd", ["text_encoder", "tokenizer"]), ("sd", ["tokenizer"]), ("sdxl", ["text_encoder", "tokenizer"]),
     ("sd3", ["text_encoder_2"]), ("flux", ["text_encoder_2", "tokenizer_2"]), ("pixart", ["text_encoder"])],
)  # fmt: skip
def test_a_pipeline_without_an_encoder_is_refused(name, lost):
    pipe = tiny_sd() if name == "sd" else FAMILIES[name]()
    for part in lost:
        setattr(pipe, part, None)
    with pytest.raises(ModelError, match=" and ".join(lost)):
        Target.from_pipeline(pipe)


def test_sd3_may_be_opened_without_its_largest_encoder():
    pipe = FAMILIES["sd3"]()
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    assert Target.from_pipeline(pipe).check("a fox", Sampling(steps=2)).passed


def test_kontext_without_a_picture_is_a_flux_at_any_size():
    pipe = rebuilt("FluxKontextPipeline", FAMILIES["flux"]())
    pipe.default_sample_size = 8
    pipe.set_progress_bar_config(disable=True)
    target = Target.from_pipeline(pipe)
    assert target.denoiser.family == "flux"
    for size in ({}, {"height": 16, "width": 32}):
        settings = Sampling(steps=2, **size)
        assert target.check("a fox", settings).passed
        assert target.generate(["a fox"], [0], 0, settings)[0].size == (size.get("width", 16), 16)


ONLY = {
    "pag": "StableDiffusionPAGPipeline",
    "sag": "StableDiffusionSAGPipeline",
    "panorama": "StableDiffusionPanoramaPipeline",
}


@pytest.mark.parametrize("name", ONLY)
def test_other_samplings_generate_only(name):
    pipe = rebuilt(ONLY[name], tiny_sd())
    pipe.set_progress_bar_config(disable=True)
    target = Target.from_pipeline(pipe)
    assert target.denoiser is None
    assert ONLY[name] in target.generates_only
    assert target.generates_only in target.notes
    with pytest.raises(ModelError, match="only generates"):
        target.check("a fox")
    assert target.require_check() is None
    assert target.generation_nfe(Sampling()) is None


def test_generating_only_is_seeded_by_image():
    target = Target.from_pipeline(rebuilt("StableDiffusionPAGPipeline", tiny_sd()))
    both = target.generate(["a", "b"], [0, 1], 3, Sampling(steps=2))
    alone = target.generate(["b"], [1], 3, Sampling(steps=2))[0]
    difference = torch.tensor(list(both[1].tobytes())).float() - torch.tensor(list(alone.tobytes())).float()
    assert difference.abs().max() <= 1
    assert both[0].tobytes() != both[1].tobytes()


class TestWrappers:
    @pytest.mark.parametrize("name", ["sd", "ddpm"])
    def test_a_compiled_network_is_seen(self, name):
        pipe = tiny_sd() if name == "sd" else tiny_ddpm()
        plain = Target.from_pipeline(pipe).denoiser.family
        pipe.unet = torch.compile(pipe.unet, backend="eager")
        target = Target.from_pipeline(pipe)
        assert target.denoiser.family == plain
        assert target.check("a fox", Sampling(steps=2)).passed

    def test_a_network_in_peft_is_seen_with_its_adapter(self):
        from peft import LoraConfig, get_peft_model

        pipe = tiny_sd()
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        cond = Target.from_pipeline(pipe).denoiser.encode_prompts(["a fox"])
        before = Target.from_pipeline(pipe).denoiser.predict(x, 500.0, cond)
        pipe.unet = get_peft_model(pipe.unet, LoraConfig(init_lora_weights=False, target_modules=["to_k"])).eval()
        target = Target.from_pipeline(pipe)
        assert target.check("a fox", Sampling(steps=2)).passed
        assert (target.denoiser.predict(x, 500.0, cond) - before).abs().max() > 1e-4


def lcm(pipe):
    pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)


def tcd(pipe):
    pipe.scheduler = diffusers.TCDScheduler.from_config(pipe.scheduler.config)


def turbo(pipe):
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing"
    )


def schnell(pipe):
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)


def renewed(pipe):
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)


def named(pipe):
    pipe.register_to_config(_name_or_path="someone/model-3.5-large-turbo")


SIGNS = {
    "lcm": (tiny_sd, lcm), "tcd": (tiny_sd, tcd), "turbo": (tiny_sd, turbo), "sdxl-lcm": (FAMILIES["sdxl"], lcm),
    "sdxl-turbo": (FAMILIES["sdxl"], turbo), "pixart-lcm": (FAMILIES["pixart"], lcm),
    "schnell": (lambda: FAMILIES["flux"](False), schnell), "sd3-renewed": (FAMILIES["sd3"], renewed),
    "sd3-named": (FAMILIES["sd3"], named),
}  # fmt: skip


class TestDistilled:
    @pytest.mark.parametrize("name", SIGNS)
    def test_a_sign_takes_the_unconditional_branch_away(self, name):
        make, sign = SIGNS[name]
        pipe = make()
        assert Target.from_pipeline(pipe).denoiser.distilled is None
        sign(pipe)
        target = Target.from_pipeline(pipe)
        assert target.denoiser.distilled
        assert not target.denoiser.unconditional_branch
        assert any("distilled" in note for note in target.notes)
        trusted = Target.from_pipeline(pipe, distilled=False)
        assert trusted.denoiser.distilled is None
        assert trusted.denoiser.unconditional_branch

    def test_said_by_the_user(self):
        assert not Target.from_pipeline(tiny_sd(), distilled=True).denoiser.unconditional_branch

    @pytest.mark.parametrize("spacing", ["leading", "linspace"])
    def test_euler_with_other_steps_is_no_sign(self, spacing):
        pipe = tiny_sd()
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing=spacing)
        assert Target.from_pipeline(pipe).denoiser.unconditional_branch

    def test_zero_terminal_snr_with_trailing_steps_is_no_sign(self):
        assert Target.from_pipeline(tiny_sd("v_prediction", zero_snr=True)).denoiser.unconditional_branch

    @pytest.mark.parametrize("name", ["sd", "sdxl"])
    def test_guidance_as_an_input_generates_only(self, name):
        pipe = tiny_sd() if name == "sd" else FAMILIES["sdxl"]()
        pipe.register_modules(unet=like(pipe.unet, time_cond_proj_dim=8))
        lcm(pipe)
        target = Target.from_pipeline(pipe)
        assert "distilled" in target.generates_only
        assert len(target.generate(["a fox"], [0], 0, Sampling(steps=2))) == 1

    def test_scores_that_need_the_branch_say_why(self):
        from diffmem.errors import ScoreRefused
        from diffmem.scores.spec import parse_score

        pipe = tiny_sd()
        lcm(pipe)
        with pytest.raises(ScoreRefused, match="LCMScheduler"):
            parse_score("score-difference").needs(denoiser_for(pipe))


class TestCost:
    @pytest.mark.parametrize("name", ["sd", *FAMILIES])
    @pytest.mark.parametrize("guidance", [None, 1.0, 3.0])
    def test_the_cost_told_is_the_number_of_rows_evaluated(self, name, guidance):
        pipe = tiny_sd() if name == "sd" else FAMILIES[name]()
        target, rows = Target.from_pipeline(pipe), []
        hook = target.denoiser.network_modules()[0].register_forward_hook(
            lambda m, args, kwargs, output: rows.append(len(target.denoiser.read_call(args, kwargs)[0])),
            with_kwargs=True,
        )
        sampling = Sampling(steps=3, guidance=guidance)
        target.generate(["3" if name == "dit" else "a fox"], [0], 0, sampling)
        hook.remove()
        assert target.generation_nfe(sampling) == sum(rows)

    @pytest.mark.parametrize("scheduler", ["heun", "pndm", "dpm++", "euler", "ddim"])
    def test_samplers_of_higher_order(self, scheduler):
        target, calls = Target.from_pipeline(tiny_sd()), []
        target.pipeline.unet.register_forward_hook(lambda m, a, o: calls.append(len(a[0])))
        sampling = Sampling(steps=4, scheduler=scheduler, guidance=1.0)
        target.generate(["a"], [0], 0, sampling)
        assert nfe_per_image(target.pipeline, target.denoiser, sampling) == sum(calls)


class TestCheck:
    def test_not_a_number_fails_and_raises_once(self):
        pipe = tiny_sd()
        with torch.no_grad():
            pipe.unet.conv_in.weight.fill_(float("nan"))
        target = Target.from_pipeline(pipe)
        result = target.check("a fox", Sampling(steps=2))
        assert not result.passed
        assert "not finite" in result.message
        assert result.as_dict()["output_difference"] is None
        with pytest.raises(CheckFailed, match="despite-check"):
            target.require_check()
        assert CheckFailed.exit_code == 1
        target.despite_check = True
        assert not target.require_check().passed

    @pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "pixart", "flux", "z-image", "sana"])
    def test_a_negative_prompt_is_a_branch(self, name):
        pipe = tiny_sd() if name == "sd" else FAMILIES[name]()
        result = Target.from_pipeline(pipe).check(
            "a fox", Sampling(steps=2, guidance=3.0, negative_prompt=None if name == "flux" else "a bad dog")
        )
        assert result.passed, result.message

    @pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
    def test_another_size_is_looked_at_as_it_is_run(self, name):
        pipe = tiny_sd() if name == "sd" else FAMILIES[name]()
        result = Target.from_pipeline(pipe).check("a fox", Sampling(steps=2, height=32, width=48))
        assert result.passed, result.message

    def test_the_guidance_that_a_network_takes_is_the_one_asked_for(self):
        target = Target.from_pipeline(FAMILIES["flux"]())
        assert target.check("a fox", Sampling(steps=2, guidance=1.5)).passed
        assert target.denoiser.guidance == 3.5

    def test_latents_decoded_otherwise_than_the_pipeline_does(self):
        for name, change in (
            ("sdxl", {"latents_mean": [0.5] * 4, "latents_std": [2.0] * 4}),
            ("sd", {"shift_factor": 0.7}),
        ):
            pipe = tiny_sd() if name == "sd" else FAMILIES[name]()
            pipe.vae.register_to_config(**change)
            target = Target.from_pipeline(pipe)
            result = target.check("a fox", Sampling(steps=2))
            assert result.passed, result.message
            assert result.image_difference < 0.002
            decode = target.denoiser.decode
            target.denoiser.decode = lambda x0, decode=decode: decode(1.5 * x0)
            result = target.check("a fox", Sampling(steps=2))
            assert not result.passed
            assert "decoded images" in result.message

    def test_latents_come_back_from_images_as_they_were_decoded(self):
        pipe = FAMILIES["sdxl"]()
        pipe.vae.register_to_config(latents_mean=[0.5, -1.0, 2.0, 0.0], latents_std=[2.0, 1.0, 0.5, 3.0])
        denoiser = Target.from_pipeline(pipe).denoiser
        image = torch.rand(1, 3, 16, 16) * 2 - 1
        with torch.no_grad():
            own = pipe.vae.encode(image).latent_dist.mean
            want = (own - torch.tensor([0.5, -1.0, 2.0, 0.0]).reshape(1, 4, 1, 1)) * pipe.vae.config.scaling_factor
            want = want / torch.tensor([2.0, 1.0, 0.5, 3.0]).reshape(1, 4, 1, 1)
            torch.testing.assert_close(denoiser.encode_images(image), want)
            torch.testing.assert_close(denoiser.decode(denoiser.encode_images(image)), pipe.vae.decode(own).sample)

    def test_the_wrong_half_of_a_learned_variance_is_seen(self):
        target = Target.from_pipeline(FAMILIES["pixart"]())
        assert target.check("a fox", Sampling(steps=2)).passed
        target.denoiser.read_output = lambda output: output.chunk(2, 1)[1] if output.shape[1] == 8 else output
        result = target.check("a fox", Sampling(steps=2))
        assert not result.passed
        assert "as the sampler gets them" in result.message

    def test_a_learned_variance_in_pixels(self):
        pipe = tiny_ddpm()
        scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
        pipe.register_modules(unet=like(pipe.unet, out_channels=6), scheduler=scheduler)
        target = Target.from_pipeline(pipe)
        assert target.check("", Sampling(steps=3)).passed
        x = torch.randn(2, 3, 8, 8)
        assert target.denoiser.predict(x, 10.0, target.denoiser.null()).shape == x.shape

    def test_times_that_stand_for_other_noise_are_seen(self):
        from diffmem.models.schedule import DiscreteSchedule

        pipe = tiny_sd()
        target = Target.from_pipeline(pipe)
        sampling = Sampling(steps=3, scheduler="euler")
        assert target.check("a fox", sampling).time_difference < 1.5
        target.denoiser.schedule = DiscreteSchedule.linear()
        result = target.check("a fox", sampling)
        assert not result.passed
        assert "noise levels" in result.message

    def test_a_pipeline_that_fails_by_itself_is_one_sentence(self):
        pipe = tiny_sd()
        pipe.unet.register_forward_pre_hook(lambda m, a: (_ for _ in ()).throw(ValueError("of the user's own")))
        with pytest.raises(ModelError, match=r"The pipeline itself fails.*of the user's own"):
            Target.from_pipeline(pipe).check("a fox", Sampling(steps=2))
        assert "step" not in vars(pipe.scheduler)

    def test_a_safety_checkers_black_image_is_no_alarm(self):
        pipe = tiny_sd()
        pipe.run_safety_checker = lambda image, device, dtype: (torch.full_like(image, -1.0), [False])
        result = Target.from_pipeline(pipe).check("a fox", Sampling(steps=2))
        assert result.passed
        assert result.image_difference is None


@pytest.mark.parametrize(
    ("name", "makes"),
    [("KandinskyV22PriorPipeline", "embeddings"), ("StableCascadePriorPipeline", "embeddings"), ("ShapEPipeline", "shapes"),
     ("WuerstchenPriorPipeline", "embeddings"), ("StableAudio3Pipeline", "sound"), ("LLaDA2Pipeline", "text")],
)  # fmt: skip
def test_pipelines_that_make_no_images(name, makes):
    kind = getattr(diffusers, name)
    parts = {k: None for k in inspect.signature(kind.__init__).parameters if k != "self"}
    with pytest.raises(ModelError, match=f"makes .*{makes}.*no images"):
        check_inputs(kind(**parts))
