"""The diffusers backend: a saved pipeline makes the same pictures, and what cannot be loaded says why."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from diffusers import QwenImagePipeline
from huggingface_hub import constants

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine import pull
from tenkaigen_worker.engine.backend import DeviceBroken, OutOfMemory
from tenkaigen_worker.engine.base import NO_INPUTS, Step
from tenkaigen_worker.engine.devices import GIB, Footprint, choose_device, choose_dtype, choose_offload
from tenkaigen_worker.engine.host import EngineProcess
from tenkaigen_worker.engine.loaders import check_auto, footprint, load_diffusers
from tenkaigen_worker.engine.qwen import QwenBackend
from tenkaigen_worker.errors import EngineError
from tenkaigen_worker.recipe import Model, Recipe
from tests.random_pipeline import build_pipeline
from tests.unit.hub_server import COMMIT, Hub, serving

RECIPE = Recipe("a red fox", "", "Standard", 64, 64, "quality", 2, 4.0, "base", (7,), "diffusers", "fox")
CPU = torch.device("cpu")
MODEL = Model("diffusers", "fox", None, 64, 64)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "fox"
    build_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "fox"))


def settings(model: Path | str, **changes: object) -> EngineSettings:
    return EngineSettings.model_validate({"backend": "diffusers", "device": "cpu", "model": str(model), **changes})


def load(model: Path | str, **changes: object) -> QwenBackend:
    return load_diffusers(settings(model, **changes), alive=lambda: None)


def picture(backend: QwenBackend, steps: list[Step] | None = None, *, lean: bool = False) -> bytes:
    report = (steps if steps is not None else []).append
    (made,) = backend.pictures(RECIPE, NO_INPUTS, first=0, lean=lean, report=report, cancel=threading.Event())
    return made.pixels


async def test_a_saved_pipeline_makes_the_same_picture_in_a_child(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tenkaigen.engine")
    engine = EngineProcess(settings(saved, threads=torch.get_num_threads()))
    info = await engine.start()
    run = engine.generate(RECIPE, on_step=lambda step: None)
    (made,) = [picture async for picture in run]
    await engine.stop()

    bare = QwenImagePipeline.from_pretrained(saved, dtype=torch.float32)
    assert made.pixels == picture(QwenBackend(bare, info.model, CPU, torch.float32))
    said = [record.getMessage() for record in caplog.records if record.name == "tenkaigen.engine"]
    assert said[0].startswith(f"Model fox is ready on cpu (float32) after {info.load_ms / 1000:.1f} s: files ")
    assert list(info.stages_ms) == ["files", "weights", "place"]  # on a GPU also a picture
    assert all("Prompts encoded in " in line for line in said[1:])
    assert (info.model.name, info.model.revision, info.model.demo) == ("fox", None, False)
    assert (info.model.default_width, info.model.default_height) == (1024, 1024)


def test_saving_and_loading_changes_no_picture_visibly(saved: Path) -> None:
    # Not to the bit: weights read from a file lie elsewhere in memory, and the CPU's kernels add in another order.
    loaded = load(saved)
    built = QwenBackend(build_pipeline(), loaded.model, CPU, torch.float32)

    assert max(abs(a - b) for a, b in zip(picture(loaded), picture(built), strict=True)) <= 1


def test_a_leaner_run_decodes_in_tiles_and_leaves_no_trace(saved: Path) -> None:
    backend = load(saved)
    usual = picture(backend)
    picture(backend, lean=True)

    assert not backend._pipe.vae.use_tiling
    assert picture(backend) == usual


def test_bfloat16_is_used_where_asked_for(saved: Path) -> None:
    backend = load(saved, dtype="bfloat16")

    assert backend.dtype == "bfloat16"
    assert len(picture(backend)) == 64 * 64 * 3


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


UNUSABLE = {
    "no index": (
        lambda folder: (folder / "model_index.json").unlink(),
        r"fox has no model_index\.json: not a folder that a diffusers pipeline was saved to",
    ),
    "an index that is no JSON": (
        lambda folder: (folder / "model_index.json").write_text("{"),
        r"its model_index\.json cannot be read",
    ),
    "an index without a class": (
        lambda folder: (folder / "model_index.json").write_text("[]"),
        r"its model_index\.json cannot be read",
    ),
    "another pipeline": (
        lambda folder: (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}'),
        "is a FluxPipeline; only a QwenImagePipeline can be used, such as Qwen/Qwen-Image",
    ),
    "a weights file cut short": (
        lambda folder: truncate(folder / "transformer/diffusion_pytorch_model.safetensors"),
        "incomplete or damaged",
    ),
    "no weights": (
        lambda folder: (folder / "vae/diffusion_pytorch_model.safetensors").unlink(),
        "incomplete or damaged",
    ),
    "a missing component": (lambda folder: shutil.rmtree(folder / "text_encoder"), "incomplete or damaged"),
    "a damaged configuration": (
        lambda folder: (folder / "vae/config.json").write_text("no"),
        "incomplete or damaged",
    ),
}


@pytest.mark.parametrize(("change", "complaint"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_folder_that_cannot_be_used_says_why(copy: Path, change: Callable[[Path], object], complaint: str) -> None:
    change(copy)

    with pytest.raises(EngineError, match=complaint) as caught:
        load(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["/no/such/model", "./models/fox", "no-such-folder", "a/b/c"])
def test_a_missing_folder_says_so(model: str) -> None:
    with pytest.raises(EngineError, match=r"there is no folder .*; give a folder or a hub id"):
        load(model)


# The hub, played by a server of this machine.


@pytest.fixture
def hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub({"acme/fox": files_of(saved)})) as hub:
        use_endpoint(monkeypatch, hub.origin)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


def test_a_hub_model_is_downloaded_once_and_pinned_to_its_commit(
    hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulses: list[None] = []
    backend = load_diffusers(settings("acme/fox"), alive=lambda: pulses.append(None))

    assert (backend.model.name, backend.model.revision) == ("acme/fox", COMMIT)
    assert pulses
    assert picture(backend) == picture(load(saved))

    # From here on the machine is cut off.
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    assert load("acme/fox").model == backend.model
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load("acme/fox").model == backend.model


REFUSALS = {
    "no such model": (404, "RepoNotFound", r"the hub has no model acme/fox \(or it is private"),
    "gated": (403, "GatedRepo", "wants its licence accepted on the hub, and HF_TOKEN to be set"),
    "no such revision": (404, "RevisionNotFound", r"engine\.revision: acme/fox has no revision v9"),
    "no index": (404, "EntryNotFound", r"acme/fox has no model_index\.json: not a diffusers pipeline"),
}


@pytest.mark.parametrize(("status", "error_code", "complaint"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_the_hub_refuses_is_said_plainly(hub: Hub, status: int, error_code: str, complaint: str) -> None:
    hub.refusal = (status, error_code)

    with pytest.raises(EngineError, match=complaint):
        load("acme/fox", revision="v9")


def test_nothing_large_is_downloaded_of_another_pipeline(hub: Hub) -> None:
    hub.repos["acme/fox"]["model_index.json"] = b'{"_class_name": "FluxPipeline"}'

    with pytest.raises(EngineError, match="acme/fox is a FluxPipeline"):
        load("acme/fox")
    assert not any("safetensors" in path for path in hub.asked)


def test_an_unreachable_hub_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits between its tries
    use_endpoint(monkeypatch, "http://127.0.0.1:9")

    with pytest.raises(EngineError, match=r"not on this machine, and http://127\.0\.0\.1:9 cannot be reached"):
        load("acme/fox")


def test_offline_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(EngineError, match="not on this machine, and HF_HUB_OFFLINE is set"):
        load("acme/fox")


def test_a_full_disk_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pull, "http_get", full)

    with pytest.raises(EngineError, match=r"the disk is full: acme/fox does not fit into .*cache"):
        load("acme/fox")


def test_auto_never_downloads(hub: Hub) -> None:
    with pytest.raises(EngineError, match=r"engine\.backend: auto does not download.*engine\.backend: tiny"):
        load("acme/fox", backend="auto")
    assert hub.asked == []


def test_auto_without_a_gpu_says_what_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(EngineError, match=r"auto found no CUDA GPU.*engine\.backend: tiny.*engine\.backend: diffusers"):
        check_auto()


class FailingPipe:
    """A pipeline whose first kernel raises."""

    scheduler = None
    transformer = torch.nn.Module()

    def __init__(self, error: Exception) -> None:
        self.error = error

    def set_progress_bar_config(self, *, disable: bool) -> None:
        """Show nothing."""

    def maybe_free_model_hooks(self) -> None:
        """Hold nothing."""

    def encode_prompt(self, **arguments: Any) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("device", "error", "becomes"),
    [
        ("cuda:0", RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), DeviceBroken),
        ("cuda:0", RuntimeError("CUDA error: an illegal memory access was encountered"), DeviceBroken),
        ("cuda:0", RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED"), DeviceBroken),
        ("cuda:0", torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory),
        ("cuda:0", ValueError("a bug"), ValueError),
        ("cpu", RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
        ("cpu", RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfMemory),
    ],
)
def test_only_a_new_process_can_follow_an_unforeseen_error_on_a_gpu(
    device: str, error: Exception, becomes: type[Exception]
) -> None:
    backend = QwenBackend(FailingPipe(error), MODEL, torch.device(device), torch.float32)

    with pytest.raises(becomes) as caught:
        picture(backend)
    assert type(caught.value) is becomes


# Devices, number types, memory.


@pytest.mark.parametrize("wanted", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_says_so(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(EngineError, match=rf"engine\.device: {wanted}, but torch .* sees no CUDA GPU"):
        choose_device(wanted)
    assert choose_device("auto") == CPU


def test_a_gpu_number_past_the_last_says_which_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    with pytest.raises(EngineError, match="the last GPU here is cuda:1"):
        choose_device("cuda:2")
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cuda") == choose_device("auto") == torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("wanted", "capability", "dtype"),
    [
        ("auto", (8, 6), torch.bfloat16),
        ("auto", (7, 5), torch.float32),
        ("float32", (8, 6), torch.float32),
        ("bfloat16", (7, 5), torch.bfloat16),
    ],
)
def test_the_number_type_follows_the_gpu(
    wanted: str, capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    assert choose_dtype(wanted, torch.device("cuda", 0)) is dtype


def test_offload_on_the_cpu_is_refused(saved: Path) -> None:
    with pytest.raises(EngineError, match=r"engine\.offload: model is for a CUDA GPU"):
        load(saved, offload="model")


QWEN_IMAGE = Footprint(total=58 * GIB, largest=41 * GIB)


@pytest.mark.parametrize(
    ("free", "expected"), [(139, "none"), (60, "model"), (45, "model"), (44, "sequential"), (22, "sequential")]
)
def test_offload_follows_the_free_memory_and_says_why(free: int, expected: str) -> None:
    offload, why = choose_offload("auto", QWEN_IMAGE, free * GIB)

    assert offload == expected
    assert f"{free}.0 GiB free" in why


@pytest.mark.parametrize("wanted", ["none", "model", "sequential"])
def test_offload_as_configured_is_not_argued_with(wanted: Any) -> None:
    assert choose_offload(wanted, QWEN_IMAGE, 0)[0] == wanted


def test_a_footprint_counts_every_component() -> None:
    size = footprint(build_pipeline())

    assert 3_000_000 < size.total < 5_000_000
    assert size.largest < size.total


# Without the libraries, as after a plain `pip install tenkaigen-worker`.


@pytest.mark.parametrize("backend", ["tiny", "diffusers", "auto"])
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')", "needs torch, which is not installed"),
        ("raise OSError('libcudart.so.13: cannot open shared object file')", r"cannot import .*\(libcudart"),
    ],
    ids=["missing", "broken"],
)
async def test_missing_libraries_say_what_to_install(
    backend: str, content: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(content)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    engine = EngineProcess(EngineSettings.model_validate({"backend": backend}))

    with pytest.raises(EngineError, match=complaint) as caught:
        await engine.start()
    assert 'pip install "tenkaigen-worker[inference]"' in str(caught.value)
    assert psutil.Process().children() == []
