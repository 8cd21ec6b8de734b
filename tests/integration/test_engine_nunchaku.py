"""The nunchaku backend over a stand-in for its kernels: plain arithmetic on the published layouts, on the CPU.

This shows that a recipe takes the same way here as on the other backends, that checkpoints are told apart and changed,
and that the forward pass over the quantised blocks is diffusers' own. It says nothing of the real kernels' numbers,
speed or memory.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tenkaigen_worker.config_engine import CheckpointSettings, EngineSettings
from tenkaigen_worker.engine import int4, int4_transformer, loaders
from tenkaigen_worker.engine.backend import DeviceBroken, OutOfMemory, Stopped, load_backend
from tenkaigen_worker.engine.base import NO_INPUTS, Inputs, Picture, Step
from tenkaigen_worker.engine.checkpoints import Checkpoints
from tenkaigen_worker.engine.host import EngineProcess
from tenkaigen_worker.engine.int4_forward import bind_forward
from tenkaigen_worker.engine.int4_transformer import check_file
from tenkaigen_worker.engine.machine import Machine
from tenkaigen_worker.engine.qwen import QwenBackend
from tenkaigen_worker.errors import EngineError, InputError
from tenkaigen_worker.recipe import AppliedLora, Recipe
from tests.int4 import STANDIN, small_pipeline, small_transformer, standin, write_checkpoint

WIDTH, HEIGHT = 64, 96
BASE, FAST = "svdq-int4_r32-fox.safetensors", "svdq-int4_r16-fast.safetensors"
RECIPE = Recipe("a red fox", "", "Standard", WIDTH, HEIGHT, "quality", 2, 1.0, "base", (7,), "nunchaku", "fox")
REFERENCE = replace(RECIPE, reference="r" * 64, strength=0.5)
INPAINTING = replace(REFERENCE, mask="m" * 64)


@pytest.fixture(scope="module", autouse=True)
def _standin() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()  # every change of checkpoints collects: without what other tests left that takes no time
    with standin():
        yield
    gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline that has no transformer, and two checkpoints."""
    folder = tmp_path_factory.mktemp("models")
    small_pipeline().save_pretrained(folder / "fox")
    (folder / "fox" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    write_checkpoint(folder / BASE, small_transformer())
    write_checkpoint(folder / FAST, small_transformer(1))
    return folder


def settings(files: Path, **changes: Any) -> EngineSettings:
    checkpoints = {
        "base": {"file": str(files / "svdq-int4_r{rank}-fox.safetensors")},
        "fast": {"file": str(files / FAST)},
    }
    return EngineSettings.model_validate(
        {"backend": "nunchaku", "device": "cpu", "model": str(files / "fox"), "checkpoints": checkpoints} | changes
    )


@pytest.fixture(scope="module")
def backend(files: Path) -> QwenBackend:
    loaded = load_backend(settings(files, max_batch=2), alive=lambda: None)
    assert isinstance(loaded, QwenBackend)
    return loaded


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    stripes = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    stripes[:, ::8] = (200, 40, 90)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[16:48, 16:48] = 255
    Image.fromarray(stripes).save(tmp_path / "reference.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return Inputs(reference=tmp_path / "reference.png", mask=tmp_path / "mask.png")


def run(
    backend: QwenBackend,
    recipe: Recipe = RECIPE,
    inputs: Inputs = NO_INPUTS,
    *,
    report: Callable[[Step], None] = lambda step: None,
    lean: bool = False,
    cancel: threading.Event | None = None,
) -> list[Picture]:
    cancel = cancel or threading.Event()
    return list(backend.pictures(recipe, inputs, first=0, lean=lean, report=report, cancel=cancel))


def draw(backend: QwenBackend, recipe: Recipe = RECIPE, inputs: Inputs = NO_INPUTS, **changes: Any) -> bytes:
    (picture,) = run(backend, recipe, inputs, **changes)
    return picture.pixels


def checkpoints(backend: QwenBackend) -> Checkpoints:
    assert backend._checkpoints is not None
    return backend._checkpoints


def array(pixels: bytes) -> Any:
    return np.frombuffer(pixels, np.uint8).reshape(HEIGHT, WIDTH, 3).astype(int)


# What a recipe can ask for.


def test_a_loaded_model_says_what_it_is_and_what_loading_took(backend: QwenBackend) -> None:
    model = backend.model

    assert (model.backend, model.name, model.base, model.demo) == ("nunchaku", "fox", "Qwen/Qwen-Image", False)
    assert model.checkpoints == {"base": BASE, "fast": FAST}
    assert (backend.device, backend.dtype) == ("cpu", "bfloat16")
    assert list(backend.stages_ms) == ["files", "transformer", "text_encoder", "vae", "place", "warm_up"]
    assert backend.stages_ms["warm_up"] > 0


def test_a_picture_depends_on_seed_and_prompt(backend: QwenBackend) -> None:
    picture = draw(backend)

    assert draw(backend) == picture
    assert picture not in {draw(backend, replace(RECIPE, seeds=(8,))), draw(backend, replace(RECIPE, prompt="a whale"))}


def test_guidance_and_schedulers_work(backend: QwenBackend) -> None:
    guided = replace(RECIPE, guidance_scale=4.0, negative_prompt="blurry")

    assert len({draw(backend, recipe) for recipe in (RECIPE, guided, replace(RECIPE, scheduler="lightning"))}) == 3


def test_a_picture_from_a_picture_and_a_mask(backend: QwenBackend, inputs: Inputs) -> None:
    weaker, inside = draw(backend, REFERENCE, inputs), array(draw(backend, INPAINTING, inputs))
    original = np.array(Image.open(inputs.reference or "")).astype(int)

    assert weaker != draw(backend)
    assert (inside[:16] == original[:16]).all()
    assert (inside[16:48, 16:48] != original[16:48, 16:48]).any()


def test_variations_are_drawn_together(backend: QwenBackend) -> None:
    steps: list[Step] = []
    together = run(backend, replace(RECIPE, seeds=(7, 8)), report=steps.append)

    assert {step.count for step in steps if step.phase == "denoise"} == {2}
    alone = array(draw(backend)), array(draw(backend, replace(RECIPE, seeds=(8,))))
    for one, other in zip(together, alone, strict=True):
        assert abs(array(one.pixels) - other).mean() < 2


def test_a_cancel_in_mid_step_spoils_nothing(backend: QwenBackend) -> None:
    expected, cancel = draw(backend), threading.Event()

    def stop(step: Step) -> None:
        if step.phase == "denoise":
            cancel.set()

    with pytest.raises(Stopped):
        run(backend, report=stop, cancel=cancel)
    assert draw(backend) == expected


def test_out_of_memory_leaves_the_leaner_way(backend: QwenBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = backend._pipe.transformer.forward

    def small_memory(hidden_states: torch.Tensor, **arguments: Any) -> Any:
        if len(hidden_states) > 1 or not backend._pipe.vae.use_tiling:
            raise torch.OutOfMemoryError
        return forward(hidden_states, **arguments)

    monkeypatch.setattr(backend._pipe.transformer, "forward", small_memory)

    with pytest.raises(OutOfMemory):
        run(backend)
    assert len(run(backend, replace(RECIPE, seeds=(7, 8)), lean=True)) == 2


def test_loras_come_and_go_with_their_run(backend: QwenBackend, tmp_path: Path) -> None:
    plain = draw(backend)
    pairs = {}
    for number in (1, 2):
        generator = torch.Generator().manual_seed(number)
        pairs[f"lora{number}"] = {
            f"transformer.transformer_blocks.{number - 1}.attn.to_q.lora_{part}.weight": torch.randn(
                shape, generator=generator
            )
            for part, shape in (("A", (4, 128)), ("B", (128, 4)))
        }
    for name, tensors in pairs.items():
        save_file(tensors, tmp_path / name)
    inputs = Inputs(loras={name: tmp_path / name for name in pairs})
    one, other = (replace(RECIPE, loras=(AppliedLora(name, name, 1.0),)) for name in pairs)

    drawn = [draw(backend, recipe, inputs) for recipe in (one, other, one)]
    assert drawn[0] == drawn[2]
    assert len({plain, *drawn}) == 3
    assert draw(backend) == plain


# Checkpoints: one at a time.


def test_another_checkpoint_draws_another_picture_and_back_again(
    backend: QwenBackend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tenkaigen.engine")
    usual, steps = draw(backend, replace(RECIPE, checkpoint=BASE)), list[Step]()
    (fast,) = run(backend, replace(RECIPE, checkpoint=FAST), report=steps.append)
    (again,) = run(backend, replace(RECIPE, checkpoint=FAST))

    assert fast.pixels == again.pixels != usual
    assert [step.phase for step in steps[:2]] == ["load", "encode"]
    assert "checkpoint" in fast.timings_ms
    assert "checkpoint" not in again.timings_ms
    # A recipe without a word about it means the first.
    assert draw(backend) == usual
    switched = [record.__dict__ for record in caplog.records if record.__dict__.get("action") == "checkpoint_switched"]
    assert [record["checkpoint"] for record in switched] == [FAST, BASE]


def test_the_checkpoint_before_is_gone_when_the_next_is_loaded(
    backend: QwenBackend, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = draw(backend, REFERENCE, inputs)
    before, positions = weakref.ref(backend._pipe.transformer), backend._pipe.transformer.pos_embed
    load, left = checkpoints(backend)._load, []

    def watched(file: Path) -> Any:
        left.append(before())
        return load(file)

    monkeypatch.setattr(checkpoints(backend), "_load", watched)
    assert draw(backend, replace(REFERENCE, checkpoint=FAST), inputs) != usual
    assert left == [None]
    # What each of these computed is remembered by diffusers for ever: switching for months must not make new ones.
    assert backend._pipe.transformer.pos_embed is positions


def test_a_checkpoint_that_is_not_there_is_the_recipes_fault(backend: QwenBackend) -> None:
    with pytest.raises(InputError, match=rf"checkpoint: there is no flux on this worker; there is {BASE}, {FAST}"):
        draw(backend, replace(RECIPE, checkpoint="flux"))


def test_after_a_switch_that_failed_the_next_run_works(
    backend: QwenBackend, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = draw(backend)
    with monkeypatch.context() as patch:
        patch.setitem(checkpoints(backend)._files, FAST, files / "gone")
        with pytest.raises(EngineError, match=r"engine\.checkpoints: gone cannot be loaded on cpu .*; get it anew"):
            draw(backend, replace(RECIPE, checkpoint=FAST))

    assert draw(backend) == usual


def test_a_switch_without_memory_needs_a_new_process(backend: QwenBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = draw(backend)

    def no_memory(file: Path) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints(backend), "_load", no_memory)
        with pytest.raises(DeviceBroken, match=f"{FAST} does not fit into cpu"):
            draw(backend, replace(RECIPE, checkpoint=FAST))
    assert draw(backend) == usual


def test_a_cancel_during_a_switch_takes_effect_at_its_end(backend: QwenBackend) -> None:
    usual, cancel, steps = draw(backend), threading.Event(), list[Step]()

    def stop(step: Step) -> None:
        steps.append(step)
        cancel.set()

    with pytest.raises(Stopped):
        run(backend, replace(RECIPE, checkpoint=FAST), report=stop, cancel=cancel)
    assert [step.phase for step in steps] == ["load", "encode"]
    assert draw(backend) == usual


# The forward pass.


@pytest.fixture(scope="module")
def quantised(files: Path) -> Any:
    from nunchaku import NunchakuQwenImageTransformer2DModel

    transformer = NunchakuQwenImageTransformer2DModel.from_pretrained(files / BASE).eval()
    bind_forward(transformer)
    return transformer


def arguments(batch: int, tokens: int, *, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(batch, 24, 64, generator=generator).to(torch.bfloat16),
        "encoder_hidden_states": torch.randn(batch, tokens, 32, generator=generator).to(torch.bfloat16),
        "timestep": torch.full((batch,), 0.5, dtype=torch.bfloat16),
        "img_shapes": [[(1, 4, 6)]] * batch,
        "return_dict": False,
    }


@torch.no_grad()
def predict(transformer: Any, **arguments: Any) -> torch.Tensor:
    predicted: torch.Tensor = transformer(**arguments)[0]
    return predicted.float()


def far(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_it_predicts_what_the_dense_transformer_predicts(quantised: Any) -> None:
    given = arguments(2, 9)
    dense = predict(small_transformer().to(torch.bfloat16), **given)

    assert far(predict(quantised, **given), dense) < 0.25


def test_padding_is_not_looked_at(quantised: Any) -> None:
    """A batch of a long and a short prompt equals both alone; without the mask it does not."""
    long, short = arguments(1, 9, seed=1), arguments(1, 5, seed=2)
    padded = torch.cat([short["encoder_hidden_states"], torch.full((1, 4, 32), 9.0, dtype=torch.bfloat16)], dim=1)
    both = arguments(2, 9) | {
        "hidden_states": torch.cat([long["hidden_states"], short["hidden_states"]]),
        "encoder_hidden_states": torch.cat([long["encoder_hidden_states"], padded]),
    }
    mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    alone = torch.cat([predict(quantised, **long), predict(quantised, **short)])

    masked = predict(quantised, **both, encoder_hidden_states_mask=mask)
    unmasked = predict(quantised, **both)
    # Not to the bit: what 16 bits round differently may fall to the next of the 4-bit steps.
    assert far(masked[0], alone[0]) < 0.05
    assert far(masked[1], alone[1]) < 0.05
    assert far(unmasked[1], alone[1]) > 0.15


def test_what_a_control_net_adds_is_spread_over_the_blocks(quantised: Any) -> None:
    given = arguments(1, 5)
    zero, some = torch.zeros(1, 24, 128), torch.ones(1, 24, 128)

    plain = predict(quantised, **given)
    assert torch.equal(predict(quantised, **given, controlnet_block_samples=[zero.to(torch.bfloat16)]), plain)
    assert not torch.equal(predict(quantised, **given, controlnet_block_samples=[some.to(torch.bfloat16)]), plain)


def test_nunchakus_own_forward_pass_fails_on_this_diffusers(quantised: Any) -> None:
    """If this fails, the package has caught up, and ours may go."""
    with pytest.raises(TypeError, match="device"):
        type(quantised).forward(quantised, **arguments(1, 5), txt_seq_lens=[5])


class Manager:
    """Notes what an offload manager is told, and gives the block itself.

    As nunchaku's does it counts the steps by itself, over all calls, to know which block is to come.
    """

    def __init__(self, blocks: Any) -> None:
        self.blocks = blocks
        self.told: list[Any] = []
        self.current_block_idx = 0

    def set_device(self, device: torch.device) -> None:
        self.told.append("device")

    def initialize(self, stream: Any) -> None:
        self.told.append("begin")

    def get_block(self, index: int) -> Any:
        self.told.append(index)
        return self.blocks[self.current_block_idx]

    def step(self, stream: Any) -> None:
        self.told.append("step")
        self.current_block_idx = (self.current_block_idx + 1) % len(self.blocks)


def test_offloaded_blocks_come_from_their_manager(quantised: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given, manager = arguments(1, 5), Manager(quantised.transformer_blocks)
    expected = predict(quantised, **given)
    monkeypatch.setattr(quantised, "offload", True)
    monkeypatch.setattr(quantised, "offload_manager", manager)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)

    assert torch.equal(predict(quantised, **given), expected)
    assert manager.told == ["device", "begin", 0, "step", 1, "step"]

    manager.current_block_idx = 1  # as a call leaves it that runs out of memory in the second block
    assert torch.equal(predict(quantised, **given), expected)


@pytest.mark.filterwarnings("ignore:.torch_dtype. is deprecated:FutureWarning")
def test_nunchaku_lite_predicts_the_same_with_its_own_forward_pass(quantised: Any, files: Path) -> None:
    placement = int4_transformer.Placement(torch.device("cpu"), torch.bfloat16)
    lite = int4_transformer.load_with_lite(files / BASE, files / "fox", placement)
    given, mask = arguments(2, 9), torch.tensor([[1] * 9, [1] * 5 + [0] * 4])

    assert far(predict(lite, **given), predict(quantised, **given)) < 0.02
    masked = predict(lite, **given, encoder_hidden_states_mask=mask)
    assert far(masked, predict(quantised, **given, encoder_hidden_states_mask=mask)) < 0.02


# What cannot be loaded says why.


def rewritten(file: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Write a checkpoint anew with another ``config`` or ``quantization_config``."""
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    config, quantisation = (json.loads(metadata[key]) for key in ("config", "quantization_config"))
    change(config, quantisation)
    texts = {"config": json.dumps(config), "quantization_config": json.dumps(quantisation)}
    save_file(tensors, file, metadata | texts)


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "fp4": (
        lambda file: rewritten(file, lambda config, how: how["weight"].update(dtype="fp4_e2m1_all")),
        "is quantised to fp4_e2m1_all, for Blackwell GPUs; take the file whose name has int4",
    ),
    "another rank": (
        lambda file: rewritten(file, lambda config, how: how.update(rank=128)),
        "has a branch of rank 128, but its rank is set to 32",
    ),
    "a variant": (
        lambda file: rewritten(file, lambda config, how: config.update(zero_cond_t=True)),
        r"is a variant of Qwen-Image that cannot be drawn quantised \(zero_cond_t\)",
    ),
    "no safetensors": (lambda file: file.write_text("<html>"), "is no safetensors file, or cut short"),
    "cut short": (lambda file: os.truncate(file, file.stat().st_size // 2), "is no safetensors file, or cut short"),
    "no metadata": (
        lambda file: save_file(load_file(file), file),
        "does not say how it was quantised: not a file for nunchaku",
    ),
    "another model": (
        lambda file: (
            save_file({"single_transformer_blocks.0.qweight": torch.zeros(1)}, file, flux(file)),
            None,
        ),
        "is a NunchakuFluxTransformer2dModel; only the transformer of Qwen-Image can be used",
    ),
}


def flux(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata()) | {"model_class": "NunchakuFluxTransformer2dModel"}


@pytest.mark.parametrize(("change", "complaint"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_file_that_cannot_be_used_says_why(
    files: Path, tmp_path: Path, change: Callable[[Path], object], complaint: str
) -> None:
    file = Path(shutil.copy(files / BASE, tmp_path))
    change(file)

    with pytest.raises(EngineError, match=rf"^engine\.checkpoints: {BASE} {complaint}") as caught:
        check_file(file, CheckpointSettings(file=str(file)))
    assert "\n" not in str(caught.value)


def test_nothing_is_loaded_before_every_file_is_right(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int4, "LOADERS", {})

    with pytest.raises(EngineError, match=rf"engine\.checkpoints: {FAST} has a branch of rank 32, .* set to 128"):
        load_backend(
            settings(
                files,
                checkpoints={"base": {"file": str(files / BASE)}, "fast": {"file": str(files / FAST), "rank": 128}},
            ),
            alive=lambda: None,
        )


def test_a_machine_without_what_it_takes_says_all_of_it_at_once(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine("3.11.9", torch="2.13.0+cpu", host_bytes=2**34, host_available_bytes=2**34)
    monkeypatch.setattr(int4, "inspect_here", lambda device: machine)

    with pytest.raises(EngineError, match=r"nunchaku cannot be used here: torch: .*; nunchaku: "):
        load_backend(settings(files, device="auto"), alive=lambda: None)


@pytest.mark.parametrize(("setting", "value"), [("dtype", "float32"), ("offload", "sequential")])
def test_what_other_backends_can_and_this_one_cannot_is_refused(files: Path, setting: str, value: str) -> None:
    with pytest.raises(EngineError, match=rf"engine\.{setting}: {value} is nothing for engine\.backend: nunchaku"):
        load_backend(settings(files, **{setting: value}), alive=lambda: None)


def test_the_root_logger_stays_as_it_was() -> None:
    """Importing the package configures it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "nunchaku"]:
        del sys.modules[name]
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        with int4_transformer._foreign("nunchaku"):
            import nunchaku  # noqa: F401
        assert (root.handlers, root.level) == ([], level)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def test_two_files_of_one_name_are_refused(files: Path, tmp_path: Path) -> None:
    """Recipes and the pictures of months could not tell them apart."""
    other = shutil.copy(files / FAST, tmp_path / BASE)

    with pytest.raises(EngineError, match=rf"two different files are called {BASE}"):
        load_backend(
            settings(files, checkpoints={"base": {"file": str(files / BASE)}, "fast": {"file": str(other)}}),
            alive=lambda: None,
        )


def test_the_wrong_package_of_that_name_is_told_apart(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nunchaku.py").write_text("import logging\nlogging.basicConfig()\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "nunchaku"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(EngineError, match=r"the package nunchaku cannot be used .* PyPI's nunchaku is another project"):
        load_backend(settings(files, nunchaku={"loader": "nunchaku"}), alive=lambda: None)


@pytest.mark.parametrize(("device", "mapped"), [("cpu", {}), ("cuda:0", {"device_map": {"": torch.device("cuda:0")}})])
def test_the_text_encoder_goes_straight_to_its_device(
    device: str, mapped: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    kind = SimpleNamespace(from_pretrained=lambda folder, **how: calls.append(how))
    monkeypatch.setattr(int4, "Qwen2_5_VLForConditionalGeneration", kind)
    monkeypatch.setattr(int4, "BitsAndBytesConfig", dict)
    for kept_as in ("full", "nf4"):
        int4._load_text_encoder(Path("fox"), torch.device(device), torch.bfloat16, kept_as)

    usual = {"dtype": torch.bfloat16, "use_safetensors": True, "local_files_only": True} | mapped
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    assert calls == [usual, usual | {"quantization_config": nf4}]


@pytest.mark.parametrize(
    ("asked", "planned", "kept_as"),
    [
        ("auto", "nf4", "nf4"),
        ("auto", "full", "full"),
        ("full", "nf4", "full"),
        ("nf4", None, "nf4"),
        ("auto", None, "full"),
    ],
)
def test_the_plan_says_how_the_text_encoder_is_kept_unless_somebody_does(
    files: Path, asked: str, planned: Any, kept_as: str
) -> None:
    plan: Any = planned and SimpleNamespace(text_encoder=planned)

    assert int4._text_encoder_as(settings(files, nunchaku={"text_encoder": asked}), plan) == kept_as


# `auto` takes it where everything is there.


@pytest.mark.parametrize(
    ("problems", "changes", "taken"),
    [
        ([], {}, "nunchaku"),
        (["GPU: too old"], {}, "diffusers"),
        ([], {"checkpoints": {"base": {"file": "gone.safetensors"}}}, "diffusers"),
    ],
    ids=["everything is there", "something is missing", "a file is missing"],
)
def test_auto_takes_what_is_ready(
    files: Path, problems: list[str], changes: dict[str, Any], taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders, "check_auto", lambda: None)
    monkeypatch.setattr(int4, "missing", lambda *arguments: problems)
    monkeypatch.setattr(int4, "load_nunchaku", lambda settings, alive: "nunchaku")
    monkeypatch.setattr(loaders, "load_diffusers", lambda settings, alive: "diffusers")

    assert load_backend(settings(files, backend="auto", **changes), alive=lambda: None) == taken  # type: ignore[comparison-overlap]


# In a process of its own.


async def test_the_child_draws_with_both_checkpoints(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(STANDIN), os.environ.get("PYTHONPATH", "")]))
    engine = EngineProcess(settings(files, threads=1))
    info = await engine.start()
    steps: list[Step] = []

    async def pixels(checkpoint: str) -> bytes:
        run = engine.generate(replace(RECIPE, checkpoint=checkpoint), on_step=steps.append)
        (picture,) = [picture async for picture in run]
        return picture.pixels

    drawn = [await pixels(checkpoint) for checkpoint in (BASE, FAST, BASE)]
    await engine.stop()

    assert drawn[0] == drawn[2] != drawn[1]
    assert info.model.checkpoints == {"base": BASE, "fast": FAST}
    assert info.stages_ms.keys() == {"files", "transformer", "text_encoder", "vae", "place", "warm_up"}
    assert sum(step.phase == "load" for step in steps) == 2
