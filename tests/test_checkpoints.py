"""Checkpoints of diffusers: read without loss, sampled as diffusers samples them, and judged by their own output."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from torch import Tensor

import flows.checkpoints as flow
from catalog import Cell
from flows.records import SCHEMA, read_json
from flows.study import main
from flows.survey import app
from methods.checkpoints.errors import Unusable
from methods.checkpoints.folder import Checkpoint, read
from methods.checkpoints.schedule import Discrete, schedule_of
from methods.core import run
from methods.core.activation import tallied
from methods.core.errors import Conflict, NothingMatched
from methods.core.models import device
from methods.core.process import Process, lam_of_angle
from methods.core.recipe import Recipe, compose
from methods.core.sampling import Grid, SampleNoise
from methods.core.start import PureNoise
from methods.data import load
from methods.inference.feature_caching.deepcache import deepcache
from methods.inference.feature_caching.fora import fora
from methods.inference.ode_solver.ddim import ddim
from methods.inference.token_reduction.tome_sd import tome_sd
from methods.measure.activation import fired
from methods.measure.quality import paired_fidelity

ROOT = Path(__file__).parents[1]
CHAIN = 50
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear", "beta_start": 2e-3, "beta_end": 0.2},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 2e-3, "beta_end": 0.2},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"trained_betas": [0.001 + 0.0018 * i for i in range(CHAIN)]},
}
SEEDS = [3, 4, 5, 6]


def trained(net: Any, scheduler: Any, *, labelled: bool = False, iterations: int = 40) -> Any:
    """A network after a few seconds on the digits; of two outputs the first is the prediction."""
    digits, rng = load("digits"), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(iterations):
        rows = torch.randint(len(digits.train), (16,), generator=rng)
        x0, eps = digits.train[rows], torch.randn(16, 1, 8, 8, generator=rng)
        t = torch.randint(CHAIN, (16,), generator=rng)
        kind = scheduler.config.prediction_type
        target = {"epsilon": eps, "sample": x0, "v_prediction": scheduler.get_velocity(x0, eps, t)}[kind]
        told = {"class_labels": digits.train_labels[rows]} if labelled else {}
        prediction = net(scheduler.add_noise(x0, eps, t), t, **told).sample[:, :1]
        optimizer.zero_grad()
        (prediction - target).square().mean().backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


def unet(**changed: Any) -> Any:
    torch.manual_seed(0)
    plain: dict[str, Any] = {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (16, 32), "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8, "attention_head_dim": 8,
    }  # fmt: skip
    return UNet2DModel(**{**plain, **changed})


def dit(**changed: Any) -> Any:
    torch.manual_seed(0)
    plain = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 1, "out_channels": 2, "num_layers": 3,
        "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10,
    }  # fmt: skip
    return DiTTransformer2DModel(**{**plain, **changed})


def ddpm(**config: Any) -> Any:
    return DDPMScheduler(num_train_timesteps=CHAIN, **config)


BEYOND = ("distrifusion",)
"""Techniques that find nothing to work on in the networks of diffusers; the list may only shrink."""


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trained checkpoints in the hub's format."""
    root = tmp_path_factory.mktemp("checkpoints")
    scheduler = ddpm(**SCHEDULES["linear"])
    DDPMPipeline(trained(unet(), scheduler), scheduler).save_pretrained(root / "unet")
    scheduler = DDIMScheduler(num_train_timesteps=CHAIN, clip_sample=False, **SCHEDULES["linear"])
    trained(dit(), scheduler, labelled=True).save_pretrained(root / "dit" / "transformer")
    scheduler.save_pretrained(root / "dit" / "scheduler")
    index = {
        "_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"],
        "scheduler": ["diffusers", "DDIMScheduler"], "id2label": {"0": "zero"},
    }  # fmt: skip
    (root / "dit" / "model_index.json").write_text(json.dumps(index))
    return root


@pytest.fixture(scope="session")
def with_unet(folders: Path) -> Checkpoint:
    return read(str(folders / "unet"))


@pytest.fixture(scope="session")
def with_dit(folders: Path) -> Checkpoint:
    return read(str(folders / "dit"))


@dataclass(frozen=True)
class Timesteps(Grid):
    """Steps at timesteps of the chain, `trailing` as in diffusers, where their number divides the chain."""

    def __call__(self, process: Process, steps: int) -> Tensor:
        scheduler = DDIMScheduler(num_train_timesteps=CHAIN, timestep_spacing="trailing")
        scheduler.set_timesteps(steps)
        assert isinstance(process, Discrete) and CHAIN % steps == 0
        return process.times[[*(int(k) + 1 for k in scheduler.timesteps), 0]]


class UnitNoise(PureNoise):
    """x = eps, as pipelines begin."""

    def forward(self, process: Process, times: Tensor, shape: tuple[int, ...], labels: Any, noise: SampleNoise) -> Any:
        return noise(shape), times


def as_piped(checkpoint: Checkpoint, steps: int) -> Recipe:
    """The checkpoint's baseline at the timesteps of diffusers' pipelines."""
    return replace(checkpoint.recipe(steps), grid=Timesteps())


def saved(root: Path, net: Any, scheduler: Any) -> str:
    DDPMPipeline(net, scheduler).save_pretrained(root)
    return str(root)


def sampled(checkpoint: Checkpoint, recipe: Any, labels: Tensor | None = None) -> Tensor:
    deployed = run.deploy(recipe, checkpoint.model(recipe))
    if isinstance(recipe.grid, Timesteps):
        deployed.model.starter = UnitNoise()
    return run.generate(
        recipe, deployed, torch.zeros(len(SEEDS), dtype=torch.long) if labels is None else labels, SEEDS
    )


def piped(pipeline: Any, **asked: Any) -> Tensor:
    """What one of diffusers' pipelines draws from the same seeds, in [-1, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    return pipeline(batch_size=len(SEEDS), generator=generators, output_type="pt", **asked).images * 2 - 1


# Schedules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_exact_at_its_timesteps_and_monotone_between_them(name: str, zero_snr: bool) -> None:
    scheduler = ddpm(**SCHEDULES[name], rescale_betas_zero_snr=zero_snr, prediction_type="v_prediction")
    process, signal = schedule_of(scheduler).process, scheduler.alphas_cumprod.double()
    t = process.times[1:]
    assert torch.allclose(process.alpha(t) ** 2, signal, rtol=1e-9, atol=1e-15)
    assert torch.allclose(process.sigma(t) ** 2, 1 - signal, rtol=1e-9)
    fine = torch.linspace(0, 1, 5 * CHAIN + 1, dtype=torch.float64)
    assert (process.angle(fine).diff() > 0).all()
    inner = fine[1:-1]
    assert torch.allclose(process.time(process.lam(inner)), inner, atol=1e-9)
    assert process.time(torch.tensor(torch.inf, dtype=torch.float64)) == 0
    assert (process.angles[-1] == 1) == zero_snr
    assert torch.allclose(process.lam(t[-1:]), torch.tensor([process.lam_start], dtype=torch.float64))


def test_between_timesteps_log_snr_is_close_to_straight() -> None:
    """Straight in the angle is straight in log-SNR but for the curvature within one timestep of a thousand."""
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    process = schedule_of(scheduler).process
    t, lam = process.times[50:-50], process.lam(process.times[50:-50])
    middle = (t[1:] + t[:-1]) / 2
    assert torch.allclose(process.lam(middle), (lam[1:] + lam[:-1]) / 2, atol=1e-4)


def test_a_network_is_told_the_timestep_itself_and_fractions_between(with_unet: Checkpoint) -> None:
    process = with_unet.schedule.process
    told = with_unet.net.get_submodule("conditioning.timestep")
    levels = process.angle(process.times[1:]).float()
    assert torch.equal(told(levels), torch.arange(CHAIN).float())
    between = process.angle(process.times[1:-1] + 0.25 / CHAIN).float()
    assert torch.allclose(told(between), torch.arange(CHAIN - 1) + 0.25, atol=2e-3)
    assert told(torch.zeros(1)) == 0
    assert lam_of_angle(process.angle(process.times[-1])).item() == pytest.approx(process.lam_start)


# Networks -------------------------------------------------------------------------------------------------------------

UNETS: dict[str, dict[str, Any]] = {
    "three levels": {
        "block_out_channels": (16, 16, 24), "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "layers_per_block": 2,
    },
    "residual blocks resize": {"downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift":
                               "scale_shift", "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
                               "up_block_types": ("UpBlock2D", "AttnUpBlock2D")},
    "as DDPM's": {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "attention_head_dim": None},
    "no attention below": {"add_attention": False},
    "no middle": {"mid_block_type": None},
    "classes": {"num_class_embeds": 10},
    "variance": {"out_channels": 2},
    "not square": {"sample_size": (8, 16)},
}  # fmt: skip


def level_of(checkpoint: Checkpoint, timestep: int, n: int) -> Tensor:
    """What our networks are told of a timestep."""
    return checkpoint.schedule.process.angle(checkpoint.schedule.process.times[timestep + 1]).float().expand(n)


def parameters(net: Any) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_computes_what_diffusers_unet_computes(name: str, tmp_path: Path) -> None:
    net = unet(**UNETS[name]).eval()
    checkpoint = read(saved(tmp_path, net, ddpm()))
    labels = torch.tensor([1, 7, 9])
    x = torch.randn(3, *checkpoint.shape, generator=torch.Generator().manual_seed(1))
    told = {"class_labels": labels} if checkpoint.classes else {}
    assert checkpoint.classes == (10 if told else 0)
    with torch.no_grad():
        for timestep in (0, 17, CHAIN - 1):
            ours = checkpoint.net(x, level_of(checkpoint, timestep, 3), labels)
            theirs = net(x, torch.tensor(timestep), **told).sample[:, :1]
            assert torch.allclose(ours, theirs, atol=2e-5), (ours - theirs).abs().max()
    variance = net.config.out_channels - net.config.in_channels
    assert parameters(checkpoint.net) == parameters(net) - variance * parameters(net.conv_out) // 2


def test_a_transformer_computes_what_diffusers_transformer_computes(folders: Path, with_dit: Checkpoint) -> None:
    net = DiTTransformer2DModel.from_pretrained(folders / "dit" / "transformer", low_cpu_mem_usage=False).eval()
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels, theirs = torch.tensor([0, 3, 9, -1]), torch.tensor([0, 3, 9, 10])
    with torch.no_grad():
        for timestep in (0, 17, CHAIN - 1):
            expected = net(x, timestep=torch.full((4,), timestep), class_labels=theirs).sample[:, :1]
            assert torch.allclose(with_dit.net(x, level_of(with_dit, timestep, 4), labels), expected, atol=2e-5)
    assert parameters(with_dit.net) == parameters(net) - parameters(net.proj_out_2) // 2, "all but the variance"


def test_a_config_alone_builds_the_same_network_untrained(with_unet: Checkpoint, with_dit: Checkpoint) -> None:
    for checkpoint in (with_unet, with_dit):
        fresh = checkpoint.config.build(checkpoint.shape, checkpoint.classes)
        shapes = {name: value.shape for name, value in checkpoint.net.state_dict().items()}
        assert {name: value.shape for name, value in fresh.state_dict().items()} == shapes


# Samplers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [10, 25])
def test_the_baseline_is_diffusers_ddim_pipeline_from_the_same_noise(
    steps: int, folders: Path, with_unet: Checkpoint
) -> None:
    pipeline = DDIMPipeline.from_pretrained(folders / "unet", low_cpu_mem_usage=False)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    theirs = piped(pipeline, num_inference_steps=steps, use_clipped_model_output=True)
    ours = sampled(with_unet, as_piped(with_unet, steps))
    assert torch.allclose(ours.clamp(-1, 1), theirs, atol=5e-5), (ours.clamp(-1, 1) - theirs).abs().max()
    assert ours.std() > 0.3


@pytest.mark.parametrize("name", SCHEDULES)
def test_ancestral_sampling_is_diffusers_ddpm_pipeline_from_the_same_noise(name: str, tmp_path: Path) -> None:
    """Every timestep with eta = 1 is DDPM with its smaller variance; the same draws in the same order."""
    scheduler = ddpm(**SCHEDULES[name])
    net = trained(unet(), scheduler, iterations=8)
    checkpoint = read(saved(tmp_path, net, scheduler))
    theirs = piped(DDPMPipeline(net, scheduler), num_inference_steps=CHAIN)
    ours = sampled(checkpoint, compose(as_piped(checkpoint, CHAIN), ddim(steps=CHAIN, eta=1.0)))
    assert torch.allclose(ours.clamp(-1, 1), theirs, atol=1e-4), (ours.clamp(-1, 1) - theirs).abs().max()


@pytest.mark.parametrize(
    ("kind", "zero_snr"), [("sample", False), ("v_prediction", False), ("v_prediction", True), ("sample", True)]
)
@pytest.mark.parametrize("clip", [True, False])
def test_every_prediction_is_understood(kind: str, zero_snr: bool, clip: bool, tmp_path: Path) -> None:
    config = {**SCHEDULES["scaled_linear"], "prediction_type": kind, "clip_sample": clip, "clip_sample_range": 1.5}
    scheduler = ddpm(**config, rescale_betas_zero_snr=zero_snr)
    net = trained(unet(), scheduler, iterations=8)
    checkpoint = read(saved(tmp_path, net, scheduler))
    ddim_scheduler = DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing")
    theirs = piped(DDIMPipeline(net, ddim_scheduler), num_inference_steps=10, use_clipped_model_output=True)
    ours = sampled(checkpoint, as_piped(checkpoint, 10)).clamp(-1, 1)
    assert torch.allclose(ours, theirs, atol=1e-4), (ours - theirs).abs().max()
    assert checkpoint.schedule.space.bounds == ((-1.5, 1.5) if clip else None)


def test_a_transformer_is_sampled_as_diffusers_scheduler_samples_it(folders: Path, with_dit: Checkpoint) -> None:
    net = DiTTransformer2DModel.from_pretrained(folders / "dit" / "transformer", low_cpu_mem_usage=False).eval()
    scheduler = DDIMScheduler.from_pretrained(folders / "dit" / "scheduler", timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    labels = torch.tensor([1, 2, 3, 4])
    x = torch.stack([torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])
    with torch.no_grad():
        for t in scheduler.timesteps:
            predicted = net(x, timestep=t.expand(4), class_labels=labels).sample[:, :1]
            x = scheduler.step(predicted, t, x).prev_sample
    ours = sampled(with_dit, as_piped(with_dit, 10), labels)
    assert torch.allclose(ours, x, atol=1e-4), (ours - x).abs().max()


# Techniques find their parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "counter", "which"),
    [(deepcache(), "calls_skipped", "unet"), (fora(), "calls_skipped", "dit"), (tome_sd(), "tokens_merged", "unet"),
     (tome_sd(), "tokens_merged", "dit")],
    ids=["deepcache", "fora", "tome_sd-unet", "tome_sd-dit"],
)  # fmt: skip
def test_techniques_find_their_parts_and_fire(
    method: Any, counter: str, which: str, with_unet: Checkpoint, with_dit: Checkpoint
) -> None:
    checkpoint = with_unet if which == "unet" else with_dit
    plain = checkpoint.recipe(10)
    with tallied() as counted:
        changed = sampled(checkpoint, compose(plain, method))
    unchanged = sampled(checkpoint, plain)
    assert counted[counter] > 0
    assert not torch.equal(changed, unchanged) and (changed - unchanged).abs().mean() < 0.5
    assert torch.equal(sampled(checkpoint, plain), unchanged), "the checkpoint itself stays as it was"


def test_a_cache_of_period_one_is_no_cache(with_unet: Checkpoint, with_dit: Checkpoint) -> None:
    for checkpoint, always in ((with_unet, deepcache(period=1)), (with_dit, fora(period=1))):
        plain = checkpoint.recipe(5)
        assert torch.equal(sampled(checkpoint, compose(plain, always)), sampled(checkpoint, plain))


def test_a_unet_has_no_blocks_of_a_transformer(with_unet: Checkpoint) -> None:
    with pytest.raises(Conflict, match="DiTConfig"):
        compose(with_unet.recipe(10), fora())


# What cannot be read --------------------------------------------------------------------------------------------------


def refused(name: str | Path, because: str) -> None:
    with pytest.raises(Unusable, match=because) as raised:
        read(str(name))
    assert "\n" not in str(raised.value)


def changed_config(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.fixture
def plain_folder(tmp_path: Path) -> Iterator[Path]:
    yield Path(saved(tmp_path / "model", unet(), ddpm()))


def test_a_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path / "nowhere", "There is no folder .*owner/name")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refused("nobody/nothing-at-all", "the hub did not give nobody/nothing-at-all .*give a folder")


def test_weights_as_a_pickle_are_not_read(plain_folder: Path) -> None:
    (plain_folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, plain_folder / "unet" / "diffusion_pytorch_model.bin")
    refused(plain_folder, "pickles are not read.*save_pretrained")


def test_weights_that_are_damaged_or_not_whole(plain_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = plain_folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["conv_in.bias"]
    save_file(weights, path)
    refused(plain_folder, "not whole: conv_in.bias is missing")
    path.write_bytes(b"nothing of the kind")
    refused(plain_folder, "do not load")


def test_other_networks_settings_and_schedules(plain_folder: Path, tmp_path: Path) -> None:
    config = plain_folder / "unet" / "config.json"
    before = config.read_text()
    changed_config(config, center_input_sample=True)
    refused(plain_folder, "center_input_sample = True")
    config.write_text(before)
    scheduler = plain_folder / "scheduler" / "scheduler_config.json"
    changed_config(scheduler, thresholding=True)
    refused(plain_folder, "thresholds")
    changed_config(scheduler, thresholding=False, prediction_type="score")
    refused(plain_folder, "predicts 'score'")
    changed_config(scheduler, prediction_type="epsilon", rescale_betas_zero_snr=True)
    refused(plain_folder, "ends without signal")
    changed_config(scheduler, _class_name="SchedulerOfNobody")
    refused(plain_folder, "SchedulerOfNobody")
    FlowMatchEulerDiscreteScheduler().save_pretrained(plain_folder / "scheduler")
    refused(plain_folder, "no discrete noise schedule")
    scheduler.unlink()
    refused(plain_folder, "has no scheduler_config.json")
    changed_config(plain_folder / "model_index.json", unet=["diffusers", "UNet2DConditionModel"])
    refused(plain_folder, "UNet2DConditionModel; networks known here are")
    (plain_folder / "model_index.json").write_text("{")
    refused(plain_folder, "is not JSON")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "has no config.json")


def test_a_folder_without_parts_is_read_as_one_with_parts(plain_folder: Path) -> None:
    """As the first checkpoints of diffusers lie on the hub."""
    expected = read(str(plain_folder))
    for file in [*(plain_folder / "unet").iterdir(), *(plain_folder / "scheduler").iterdir()]:
        file.rename(plain_folder / file.name)
    (plain_folder / "unet").rmdir()
    (plain_folder / "scheduler").rmdir()
    for index in (True, False):
        if not index:
            (plain_folder / "model_index.json").unlink()
        found = read(str(plain_folder))
        assert found.config == expected.config and found.schedule == expected.schedule
    assert next(found.net.parameters()).device.type in ("cpu", device().type)


# Surveys of a model ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def few_steps() -> Iterator[None]:
    """A baseline of six steps, and end points of twelve."""
    with pytest.MonkeyPatch.context() as patch:
        short = flow.KNOWN.baseline.model_copy(update={"steps": 6})
        patch.setattr(flow, "KNOWN", replace(flow.KNOWN, baseline=short))
        patch.setattr(flow, "REFERENCE_STEPS", 12)
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a site already."""
    folder = tmp_path_factory.mktemp("public")
    (folder / "index.html").write_text("the site")
    return folder


def surveyed(model: Path, methods: list[str], root: Path, out: Path) -> tuple[dict[str, Any], flow.Surveyed]:
    found = flow.survey(str(model), {id: {} for id in methods}, samples=3, blocks=2, root=root, out=out)
    (path,) = found.records
    return read_json(path), found


@pytest.mark.parametrize(
    ("model", "methods"),
    [("unet", ["dpm_solver_pp_2m", "deepcache", "int8_dynamic"]), ("unet", ["tome_sd", "weight_only_int8_int4"]),
     ("dit", ["fora", "tome_sd", "int8_dynamic"]), ("dit", [])],
    ids=lambda given: "+".join(given) if isinstance(given, list) else given,
)  # fmt: skip
def test_a_survey_leaves_a_record_like_all_others_and_a_page(
    model: str, methods: list[str], folders: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = "int8_dynamic" in methods and model == "unet"
    if not timed:
        monkeypatch.setattr(flow, "compare", lambda *_: None)
    if not methods:
        monkeypatch.setattr(flow.Bench, "alone", lambda bench: ([bench.study({})], {"gits": "It needs data."}))
    written, found = surveyed(folders / model, methods, tmp_path, out)
    assert found.records == [tmp_path / model / f"{'+'.join(sorted(methods)) or 'baseline'}.json"] and not found.failed
    committed = read_json(ROOT / "results" / "digits" / "deepcache.json")
    assert written.keys() == committed.keys() and written["status"] == "ok" and written["schema"] == SCHEMA
    subject, like = written["cells"][written["default"]], next(iter(committed["cells"].values()))
    assert subject.keys() == like.keys() and subject["cost"].keys() == like["cost"].keys()
    assert subject["metrics"]["fidelity"].keys() == like["metrics"]["fidelity"].keys()
    assert set(subject["metrics"]) == {"fidelity"} and subject["metrics"]["fidelity"]["blocks"] == 2
    for id in methods:
        assert fired(subject["counters"], flow.KNOWN.techniques[id].counters), id
    control = written["cells"][written["control"]]
    assert control["cost"]["evaluations"] == 6 and control["cost"]["macs"] > 0
    for axis in ("evaluations", "macs"):
        equal = written[f"equal_{axis}"]
        assert (equal["cell"] in written["cells"] and bool(methods)) or equal["reason"]
    machine = read_json(tmp_path / model / f"{written['id']}.cost.json")
    assert (machine["timing"] is not None) == timed
    page = found.page.read_text()
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) and ("What does not apply" in page) == (not methods or len(ids) > 0)
    for href in re.findall(r'(?:href|src)="(\.\./(?:data|static)/[^"#]+)"', page):
        assert (found.page.parent / unquote(href)).exists() or href.startswith("../data/index"), href
    assert str(folders) in page and "None" not in re.sub(r"<[^>]+>", "", page)


def test_a_survey_is_not_measured_twice_and_measures_the_same(
    folders: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "compare", lambda *_: None)
    first, _ = surveyed(folders / "unet", ["deepcache"], tmp_path / "a", out)
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*.safetensors")}
    again, _ = surveyed(folders / "unet", ["deepcache"], tmp_path / "a", out)
    assert again == first and drawn == {path: path.stat().st_mtime_ns for path in drawn}
    elsewhere, _ = surveyed(folders / "unet", ["deepcache"], tmp_path / "b", out)
    assert elsewhere == first


def test_fidelity_is_the_distance_to_the_models_own_end_points(with_unet: Checkpoint, folders: Path) -> None:
    """The many-step cell itself has none, and more steps of the baseline have less."""
    bench = flow.Bench.of(str(folders / "unet"), 3, 2, Path("nowhere"))
    plain = flow.as_model(bench.study({}).subject)
    end = flow.Ready(flow.many_steps(plain)).draw(plain.labels)
    errors = [
        paired_fidelity(flow.Ready(flow.as_model(plain.of(Cell(methods={}, steps=steps)))).draw(plain.labels), end)
        for steps in (2, 5, 25)
    ]
    assert errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize("model", ["unet", "dit"])
def test_every_technique_fires_on_a_checkpoint_or_says_why_it_cannot(model: str, folders: Path) -> None:
    bench = flow.Bench.of(str(folders / model), 3, 2, Path("nowhere"))
    applicable, refused = bench.alone()
    assert {this.id for this in applicable} | refused.keys() == flow.KNOWN.techniques.keys()
    assert all(why.count(". ") == 0 and why.endswith(".") and id in why for id, why in refused.items())
    for this in applicable:
        ready = flow.Ready(flow.as_model(this.subject))
        try:
            with tallied() as counted:
                drawn = ready.draw(ready.spec.labels)
        except NothingMatched:
            assert this.id in BEYOND
            continue
        assert drawn.isfinite().all(), this.id
        assert fired(counted, flow.KNOWN.techniques[this.id].counters), this.id


@pytest.mark.parametrize(
    ("model", "id", "because"),
    [("unet", "v_prediction", "takes a training of its own"), ("unet", "guidance_interval", "takes a training"),
     ("unet", "diff_pruning", "trains the network further"), ("unet", "es_ddpm", "fitted to training data"),
     ("unet", "q_diffusion", "fitted to training data"), ("unet", "gits", "fitted to training data"),
     ("unet", "gotta_go_fast", "draws fresh noise"), ("unet", "fora", "DiTConfig"), ("dit", "deepcache", "UNetConfig")],
)  # fmt: skip
def test_what_cannot_apply_says_why(model: str, id: str, because: str, folders: Path, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match=because):
        flow.survey(str(folders / model), {id: {}}, root=tmp_path, out=tmp_path)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_what_finds_nothing_is_a_record_with_its_reason(out: Path, tmp_path: Path) -> None:
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "add_attention": False}
    model = Path(saved(tmp_path / "without attention", unet(**blocks), ddpm()))
    written, found = surveyed(model, ["tome_sd"], tmp_path / "models", out)
    assert written["status"] == "failed" and "holds no self-attention" in found.failed[0]
    assert found.page.name == "without_attention.html" and "holds no self-attention" in found.page.read_text()


def test_the_command_line_surveys_a_model_and_answers_in_a_sentence(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def survey(*given: Any, **options: Any) -> flow.Surveyed:
        asked.append((given, options))
        return flow.Surveyed([tmp_path / "deepcache.json"], tmp_path / "model.html", [])

    with monkeypatch.context() as patch:
        patch.setattr(flow, "survey", survey)
        options = ["--methods", "deepcache(period=5)", "--samples", "4", "--blocks", "3"]
        with pytest.raises(SystemExit) as left:
            main(app, ["--model", str(folders / "unet"), *options])
        assert left.value.code == 0
    assert asked == [((str(folders / "unet"), {"deepcache": {"period": 5.0}}), {"samples": 4, "blocks": 3})]
    assert "deepcache.json" in capsys.readouterr().out
    scaled = ["--model", str(folders / "unet"), "--budget", "0.1"]
    for command in (
        scaled,
        ["--model", str(tmp_path / "nowhere")],
        ["--model", str(folders / "unet"), "--methods", "fora"],
    ):
        with pytest.raises(SystemExit) as left:
            main(app, command)
        assert left.value.code == 2
        said = capsys.readouterr().err.strip()
        assert said and "\n" not in said
