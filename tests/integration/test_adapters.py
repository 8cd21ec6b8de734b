"""LoRAs on the real pipeline: what they add, who is refused, and that nothing is left of them afterwards."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tenkaigen_worker.engine import adapters as adapters_module
from tenkaigen_worker.engine.adapters import Adapters
from tenkaigen_worker.engine.backend import OutOfMemory, Stopped
from tenkaigen_worker.engine.base import Inputs, Step
from tenkaigen_worker.engine.qwen import QwenBackend
from tenkaigen_worker.errors import EngineError, InputError
from tenkaigen_worker.recipe import AppliedLora, Recipe
from tests.loras import FORMATS, TARGETS, make_lora
from tests.random_pipeline import build_pipeline, random_backend

RECIPE = Recipe("a red fox", "", "Standard", 64, 64, "quality", 2, 1.0, "base", (7,), "tiny", "tiny")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backend() -> Iterator[QwenBackend]:
    threads = torch.get_num_threads()
    yield random_backend(threads=1)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def plain(backend: QwenBackend) -> bytes:
    """The picture without any LoRA."""
    return draw(backend)


def draw(
    backend: QwenBackend,
    loras: Mapping[Path, float] | None = None,
    *,
    report: Callable[[Step], None] = lambda step: None,
    cancel: threading.Event | None = None,
    lean: bool = False,
) -> bytes:
    """Draw the recipe with these files applied."""
    applied = tuple(AppliedLora(file.stem, digest(file), weight) for file, weight in (loras or {}).items())
    inputs = Inputs(loras={digest(file): file for file in loras or {}})
    recipe = replace(RECIPE, loras=applied)
    cancel = cancel or threading.Event()
    (made,) = backend.pictures(recipe, inputs, first=0, lean=lean, report=report, cancel=cancel)
    return made.pixels


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def state(backend: QwenBackend) -> str:
    """All that a LoRA could have left behind: weights, modules, and hooks."""
    transformer = backend._pipe.transformer
    kept = hashlib.sha256(str(transformer).encode())
    for name, tensor in transformer.state_dict().items():
        kept.update(name.encode() + tensor.numpy().tobytes())
    kept.update(str(sum(len(module._forward_hooks) for module in transformer.modules())).encode())
    return kept.hexdigest()


# What a LoRA adds.


@pytest.mark.parametrize(
    ("weights", "alpha"), [((1.0,), None), ((-0.7,), 3.0), ((0.5, 1.5), 8.0)], ids=["one", "negative", "two"]
)
@pytest.mark.parametrize("written", ["diffusers", "kohya", "comfy", "flat"])
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_the_picture_is_the_one_that_diffusers_makes_with_peft(
    backend: QwenBackend, tmp_path: Path, written: str, weights: tuple[float, ...], alpha: float | None
) -> None:
    files = {
        make_lora(tmp_path / f"{seed}.safetensors", seed=seed, format=written, alpha=alpha, rank=2 + seed): weight
        for seed, weight in enumerate(weights)
    }
    ours = draw(backend, files)

    pipe = build_pipeline()
    for file in files:
        pipe.load_lora_weights(load_file(file), adapter_name=file.stem)
    pipe.set_adapters([file.stem for file in files], list(files.values()))
    theirs = QwenBackend(pipe, backend.model, CPU, torch.float32)
    assert draw(theirs) == ours


@pytest.mark.parametrize("written", FORMATS)
def test_every_format_says_the_same(backend: QwenBackend, plain: bytes, tmp_path: Path, written: str) -> None:
    alpha = 4.0  # as much as the rank, which is what a format without alpha means
    usual = draw(backend, {make_lora(tmp_path / "usual.safetensors"): 1.0})

    assert draw(backend, {make_lora(tmp_path / "other.safetensors", format=written, alpha=alpha): 1.0}) == usual
    assert usual != plain


def test_a_weight_of_nothing_is_nothing(backend: QwenBackend, plain: bytes, tmp_path: Path) -> None:
    assert draw(backend, {make_lora(tmp_path / "a.safetensors"): 0.0}) == plain


def test_each_weight_and_each_lora_counts(backend: QwenBackend, plain: bytes, tmp_path: Path) -> None:
    one, other = (make_lora(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2))
    pictures = {plain, *(draw(backend, loras) for loras in ({one: 1}, {one: -1}, {one: 0.3}, {other: 1}))}
    pictures |= {draw(backend, {one: 1, other: 1}), draw(backend, {one: 1, other: -1})}

    assert len(pictures) == 7


def test_ranks_may_differ_from_layer_to_layer(backend: QwenBackend, plain: bytes, tmp_path: Path) -> None:
    file = make_lora(tmp_path / "a.safetensors", rank=2, targets=["proj_out"])
    save_file(load_file(file) | load_file(make_lora(file, rank=8, targets=TARGETS)), file)

    assert draw(backend, {file: 1.0}) != plain


def test_half_precision_files_are_used_in_the_models_own(backend: QwenBackend, plain: bytes, tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        assert draw(backend, {make_lora(tmp_path / "a.safetensors", dtype=dtype): 1.0}) != plain


def test_a_model_in_bfloat16_takes_loras(tmp_path: Path) -> None:
    half = random_backend(dtype="bfloat16")
    plain = draw(half)

    assert draw(half, {make_lora(tmp_path / "a.safetensors"): 1.0}) != plain
    assert draw(half) == plain


def test_what_takes_time_is_said(backend: QwenBackend, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tenkaigen.engine")
    file = make_lora(tmp_path / "fox.safetensors")
    loras = (AppliedLora("Fox", digest(file), 0.8),)
    (made,) = backend.pictures(
        replace(RECIPE, loras=loras),
        Inputs(loras={digest(file): file}),
        first=0,
        lean=False,
        report=lambda step: None,
        cancel=threading.Event(),
    )

    assert "lora" in made.timings_ms
    (line,) = [record for record in caplog.records if getattr(record, "action", "") == "lora_applied"]
    assert line.getMessage().endswith(" ms: Fox at 0.8")


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloaded_models_take_loras_and_give_them_back(plain: bytes, tmp_path: Path, offload: str) -> None:
    """With accelerate's own hooks, as the pipeline places them on a GPU; here the GPU is the CPU."""
    pipe = build_pipeline()
    for part in (pipe.text_encoder, pipe.transformer, pipe.vae):
        if offload == "model":
            cpu_offload_with_hook(part, "cpu")
        else:
            cpu_offload(part, "cpu")
    backend = QwenBackend(pipe, random_backend().model, CPU, torch.float32)
    file = make_lora(tmp_path / "a.safetensors")

    assert draw(backend) == plain
    assert draw(backend, {file: 1.0}) == draw(random_backend(), {file: 1.0}) != plain
    assert draw(backend) == plain


# Who is refused.


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    tensors = load_file(make_lora(path))
    change(tensors)
    save_file(tensors, path)
    return path


FIRST = f"transformer.{TARGETS[0]}.lora_A.weight"

WRONG = {
    "another architecture": (
        lambda path: make_lora(path, targets=["double_blocks.0.img_attn.qkv", "double_blocks.0.img_attn.proj"]),
        r"another model: there is no double_blocks\.0\.img_attn\.proj, double_blocks\.0\.img_attn\.qkv in this one",
    ),
    "more blocks than there are": (
        lambda path: make_lora(path, targets=[f"transformer_blocks.{block}.attn.to_q" for block in range(60)]),
        r"there is no transformer_blocks\.10\.attn\.to_q, .* and 55 more in this one",
    ),
    "no layer with weights": (
        lambda path: make_lora(path, targets=["transformer_blocks.0.attn"]),
        r"there is no transformer_blocks\.0\.attn in this one",
    ),
    "other shapes": (
        lambda path: rewritten(path, lambda tensors: tensors.update({FIRST: torch.zeros(4, 3072)})),
        r"to_q has 48 inputs and 48 outputs, and the LoRA's parts are 4 x 3072 and 48 x 4",
    ),
    "ranks that differ": (
        lambda path: rewritten(path, lambda tensors: tensors.update({FIRST: torch.zeros(5, 48)})),
        "parts are 5 x 48 and 48 x 4",
    ),
    "half a pair": (
        lambda path: rewritten(path, lambda tensors: tensors.pop(FIRST)),
        r"is incomplete: lora_A or lora_B is missing for transformer_blocks\.0\.attn\.to_q",
    ),
    "a prefix that does not go with its keys": (
        lambda path: rewritten(
            path, lambda tensors: tensors.update({FIRST.replace("lora_A", "lora_down"): tensors.pop(FIRST)})
        ),
        r"is in a format that is not known: it has transformer\..*lora_down",
    ),
    "a DoRA": (
        lambda path: rewritten(path, lambda tensors: tensors.update({"x.dora_scale": torch.zeros(1)})),
        r"is a DoRA, which cannot be used: it has x\.dora_scale",
    ),
    "whole numbers": (
        lambda path: rewritten(path, lambda tensors: tensors.update({FIRST: torch.zeros(4, 48, dtype=torch.int8)})),
        "something else than floating-point numbers",
    ),
    "no LoRA at all": (
        lambda path: (save_file({"transformer.proj_out.weight": torch.zeros(4, 4)}, path), path)[1],
        r"in a format that is not known: it has transformer\.proj_out\.weight",
    ),
    "no keys": (lambda path: (save_file({}, path), path)[1], "it has nothing in it"),
    "a file cut short": (
        lambda path: (path.write_bytes(make_lora(path).read_bytes()[:-100]), path)[1],
        "is no safetensors file, or cut short",
    ),
    "a pickle": (lambda path: (torch.save({}, path), path)[1], "is no safetensors file"),
}


@pytest.mark.parametrize(("make", "complaint"), WRONG.values(), ids=WRONG.keys())
def test_a_file_that_does_not_fit_is_refused_with_the_reason(
    backend: QwenBackend, plain: bytes, tmp_path: Path, make: Callable[[Path], Path], complaint: str
) -> None:
    good, before = make_lora(tmp_path / "good.safetensors"), state(backend)

    with pytest.raises(InputError, match=rf"^loras: wrong .*{complaint}"):
        draw(backend, {good: 1.0, make(tmp_path / "wrong.safetensors"): 1.0})
    assert state(backend) == before
    assert draw(backend) == plain


def test_a_file_that_is_gone_may_be_fetched_again(backend: QwenBackend, tmp_path: Path) -> None:
    loras = (AppliedLora("Fox", "0" * 64, 1.0),)
    for files, complaint in (({}, "came without its file"), ({"0" * 64: tmp_path / "gone"}, "cannot be read")):
        with pytest.raises(EngineError, match=rf"the .*LoRA Fox {complaint}"):
            draw_recipe(backend, replace(RECIPE, loras=loras), Inputs(loras=files))


def draw_recipe(backend: QwenBackend, recipe: Recipe, inputs: Inputs) -> None:
    list(backend.pictures(recipe, inputs, first=0, lean=False, report=lambda step: None, cancel=threading.Event()))


# What is kept.


def test_a_lora_is_read_once_and_the_oldest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [make_lora(tmp_path / f"{seed}.safetensors", seed=seed) for seed in range(3)]
    read: list[str] = []

    def load(file: Path) -> dict[str, torch.Tensor]:
        read.append(file.stem)
        return load_file(file)

    monkeypatch.setattr(adapters_module, "load_file", load)
    size = sum(tensor.nbytes for tensor in load_file(files[0]).values())
    adapters = Adapters(build_pipeline().transformer, CPU, torch.float32, keep_bytes=2 * size)

    def use(*numbers: int) -> list[str]:
        read.clear()
        with adapters.applied([AppliedLora(str(n), str(n), 1.0) for n in numbers], {str(n): files[n] for n in numbers}):
            return read.copy()

    assert use(0, 1) == ["0", "1"]
    assert use(0) == []
    assert use(2) == ["2"]
    assert use(0) == []
    assert use(1) == ["1"]
    files.append(make_lora(tmp_path / "3.safetensors", rank=16))
    assert use(3, 3) == ["3", "3"]  # larger than all that may be kept
    assert use(0, 1) == []
    adapters.forget()
    assert use(1, 0, 2) == ["1", "0", "2"]


def test_the_leaner_way_keeps_nothing_of_before(tmp_path: Path) -> None:
    backend, file = random_backend(), make_lora(tmp_path / "a.safetensors")
    draw(backend, {file: 1.0})
    held = set(backend._adapters._kept)
    draw(backend, lean=True)

    assert held == {digest(file)}
    assert not backend._adapters._kept


# Nothing is left of it, whatever happens.


@dataclass(frozen=True, slots=True)
class Shelf:
    """The files that the sequences below choose from."""

    good: tuple[Path, ...]
    bad: tuple[Path, ...]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    folder = tmp_path_factory.mktemp("loras")
    good = tuple(
        make_lora(folder / f"{written}.safetensors", seed=seed, format=written, targets=[*TARGETS, "proj_out"][seed:])
        for seed, written in enumerate(("diffusers", "kohya", "comfy"))
    )
    return Shelf(good, tuple(WRONG[name][0](folder / f"{name}.safetensors") for name in ("other shapes", "a pickle")))


class Broken(Exception):
    """What a step of the pipeline raises that nobody foresaw."""


def out_of_memory(step: Step) -> None:
    if step.phase == "denoise":
        raise torch.OutOfMemoryError("CUDA out of memory")


def broken(step: Step) -> None:
    if step.phase == "decode":
        raise Broken


def cancelled(step: Step) -> None:
    if step.phase == "denoise":
        raise Stopped


ENDINGS: dict[str, tuple[Callable[[Step], None], type[Exception] | None]] = {
    "well": (lambda step: None, None),
    "cancelled": (cancelled, Stopped),
    "out of memory": (out_of_memory, OutOfMemory),
    "broken": (broken, Broken),
}

weights = st.sampled_from((-1.0, 0.0, 0.4, 1.0, 2.5))
steps = st.tuples(
    st.dictionaries(st.integers(0, 2), weights, max_size=3),
    st.sampled_from((None, None, None, 0, 1)),
    st.sampled_from(sorted(ENDINGS)),
    st.booleans(),
)


def play(backend: QwenBackend, shelf: Shelf, step: tuple[dict[int, float], int | None, str, bool]) -> None:
    """One run, as the sequence says: with which LoRAs, a wrong one behind them or not, and how it ends."""
    chosen, wrong, ending, lean = step
    loras = {shelf.good[number]: weight for number, weight in chosen.items()}
    report, error = ENDINGS[ending]
    if wrong is not None:
        loras[shelf.bad[wrong]] = 1.0
        error = InputError
    if error is None:
        draw(backend, loras, lean=lean)
        return
    with pytest.raises(error):
        draw(backend, loras, report=report, lean=lean)


def hold(backend: QwenBackend, shelf: Shelf, plain: bytes, sequence: list[Any]) -> None:
    before = state(backend)
    for step in sequence:
        play(backend, shelf, step)
        assert state(backend) == before
    assert draw(backend) == plain


@settings(max_examples=8, deadline=None)
@given(sequence=st.lists(steps, min_size=1, max_size=3))
def test_whatever_happens_the_model_is_what_it_was(
    backend: QwenBackend, shelf: Shelf, plain: bytes, sequence: list[Any]
) -> None:
    hold(backend, shelf, plain, sequence)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@settings(max_examples=500, deadline=None)
@given(sequence=st.lists(steps, min_size=20, max_size=20))
def test_ten_thousand_steps_leave_the_model_what_it_was(
    backend: QwenBackend, shelf: Shelf, plain: bytes, sequence: list[Any]
) -> None:
    hold(backend, shelf, plain, sequence)
