"""``tenkaigen models``: pull, list, verify, against a hub on this machine."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from huggingface_hub import constants, file_download

from tenkaigen_worker.cli import cli, model_files
from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine import pull as pulling
from tenkaigen_worker.engine.needs import Source, needed
from tenkaigen_worker.engine.weights import find_checkpoint, find_weights
from tenkaigen_worker.errors import EngineError
from tests.unit.hub_server import COMMIT, Hub, cut_after, damaged, held, serving, sha256_of

Run = Callable[..., Result]

CHECKPOINT = "svdq-int4_r32-fox.safetensors"
SHARD = "text_encoder/model-00002-of-00002.safetensors"


def content(name: str, size: int = 6000) -> bytes:
    return random.Random(name).randbytes(size)


PIPELINE = {
    "README.md": b"a fox",
    "model_index.json": json.dumps(
        {
            "_class_name": "QwenImagePipeline",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
            "tokenizer": ["transformers", "Qwen2Tokenizer"],
            "transformer": ["diffusers", "QwenImageTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderKLQwenImage"],
        }
    ).encode(),
    "scheduler/scheduler_config.json": b"{}",
    "tokenizer/merges.txt": b"a b",
    "text_encoder/config.json": b'{"hidden_size": 8}',
    "text_encoder/model-00001-of-00002.safetensors": content("one"),
    SHARD: content("two"),
    "text_encoder/model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "transformer/config.json": b'{"num_layers": 2}',
    "transformer/diffusion_pytorch_model.safetensors": content("transformer"),
    "vae/config.json": b'{"z_dim": 16}',
    "vae/diffusion_pytorch_model.safetensors": content("vae"),
}
QUANTISED = {CHECKPOINT: content("int4"), "svdq-int4_r128-fox.safetensors": content("more"), "README.md": b"small"}

SETTINGS: dict[str, Any] = {
    "engine": {
        "backend": "nunchaku",
        "model": "acme/fox",
        "checkpoints": {
            "base": {"repo": "acme/fox-int4", "file": "svdq-int4_r{rank}-fox.safetensors"},
        },
    }
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a pipeline and a checkpoint, an empty cache, and a configuration that needs both."""
    with serving(Hub({"acme/fox": dict(PIPELINE), "acme/fox-int4": dict(QUANTISED)})) as hub:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 512)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the tries
        use_endpoint(monkeypatch, hub.origin)
        monkeypatch.chdir(tmp_path)
        configure(tmp_path, SETTINGS)
        yield hub


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


def configure(folder: Path, settings: dict[str, Any]) -> None:
    (folder / "worker.yaml").write_text(yaml.safe_dump(settings))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["models", *arguments])


def refused(*arguments: str) -> str:
    """What a command says that ends with one sentence."""
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.exception is not None
    assert not isinstance(result.exception, SystemExit)
    text = str(result.exception)
    assert "\n" not in text
    return text


def blob(folder: Path, name: str) -> Path:
    """Where a large file's content lies in the cache."""
    repo, files = ("fox-int4", QUANTISED) if name == CHECKPOINT else ("fox", PIPELINE)
    return folder / "cache" / f"models--acme--{repo}" / "blobs" / sha256_of(files[name])


def partial(folder: Path, name: str) -> Path:
    whole = blob(folder, name)
    return whole.with_name(f"{whole.name}.incomplete")


def test_everything_that_is_needed_is_fetched_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    result = run("pull")

    assert result.exit_code == 0, result.output
    folder = tmp_path / "cache" / "models--acme--fox" / "snapshots" / COMMIT
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert here == set(PIPELINE) - {"README.md", "transformer/diffusion_pytorch_model.safetensors"}
    assert all((folder / name).read_bytes() == PIPELINE[name] for name in here)
    assert not list((tmp_path / "cache").rglob("*.incomplete"))
    assert not any("r128" in path for path in hub.asked)
    assert f"engine.model: acme/fox at {COMMIT}" in result.output

    # What the engine asks for is there, also without a network.
    constants.HF_HUB_OFFLINE, before = True, constants.HF_HUB_OFFLINE
    try:
        settings = EngineSettings.model_validate(SETTINGS["engine"])
        weights = find_weights(settings, download=False, alive=lambda: None, without=("transformer",))
        file = find_checkpoint(settings.checkpoints["base"], download=False, alive=lambda: None)
    finally:
        constants.HF_HUB_OFFLINE = before
    assert (weights.folder, weights.revision) == (folder, COMMIT)
    assert file.read_bytes() == QUANTISED[CHECKPOINT]


def test_the_lines_it_prints_pin_what_was_fetched(hub: Hub, tmp_path: Path) -> None:
    printed = yaml.safe_load(run("pull").output.partition("put into the configuration:")[2])

    assert printed["engine"]["revision"] == COMMIT
    configure(tmp_path, {"engine": {**SETTINGS["engine"], **printed["engine"]}})
    result = run("pull")
    assert result.exit_code == 0, result.output
    assert "put into the configuration" not in result.output
    assert [one["pinned"] for one in json.loads(run("list", "--json").output)] == [True, True]


def test_a_second_pull_sends_nothing_again(hub: Hub) -> None:
    run("pull")
    hub.sent.clear()

    assert run("pull").exit_code == 0
    assert hub.sent == []


def test_the_diffusers_backend_needs_the_whole_pipeline_and_no_checkpoint(hub: Hub, tmp_path: Path) -> None:
    configure(tmp_path, {"engine": {"backend": "diffusers", "model": "acme/fox"}})

    assert run("pull").exit_code == 0
    assert blob(tmp_path, "transformer/diffusion_pytorch_model.safetensors").is_file()
    assert not any("int4" in path for path in hub.asked)


def test_the_token_stays_with_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    assert run("pull").exit_code == 0
    assert {token for where, token in hub.tokens if where == "store"} == {None}
    assert "Bearer hf_secret" in {token for where, token in hub.tokens if where == "acme"}


# Cut, damaged, full.


def test_a_cut_is_gone_on_with_at_once(hub: Hub) -> None:
    hub.script[SHARD] = [cut_after(2048), cut_after(1024)]

    assert run("pull").exit_code == 0
    assert hub.ranges(SHARD) == [None, "bytes=2048-", "bytes=3072-"]


def test_what_arrived_before_it_ended_is_not_sent_again(hub: Hub, tmp_path: Path) -> None:
    hub.script[SHARD] = [cut_after(2048), *[cut_after(0)] * 30]
    assert "engine.model: acme/fox cannot be downloaded to" in refused("pull")
    assert partial(tmp_path, SHARD).stat().st_size == 2048

    hub.script.clear()
    hub.sent.clear()
    assert run("pull").exit_code == 0
    assert hub.ranges(SHARD) == ["bytes=2048-"]
    assert blob(tmp_path, SHARD).read_bytes() == PIPELINE[SHARD]


def test_the_engine_itself_goes_on_with_what_is_there(hub: Hub, tmp_path: Path) -> None:
    partial(tmp_path, CHECKPOINT).parent.mkdir(parents=True)
    partial(tmp_path, CHECKPOINT).write_bytes(QUANTISED[CHECKPOINT][:1000])
    alive: list[None] = []

    settings = EngineSettings.model_validate(SETTINGS["engine"]).checkpoints["base"]
    file = find_checkpoint(settings, download=True, alive=lambda: alive.append(None))
    assert file.read_bytes() == QUANTISED[CHECKPOINT]
    assert hub.ranges(CHECKPOINT) == ["bytes=1000-"]
    assert alive


def test_a_file_that_arrived_but_was_not_checked_is_checked(hub: Hub, tmp_path: Path) -> None:
    partial(tmp_path, SHARD).parent.mkdir(parents=True)
    partial(tmp_path, SHARD).write_bytes(PIPELINE[SHARD])

    assert run("pull").exit_code == 0
    assert hub.ranges(SHARD) == []
    assert blob(tmp_path, SHARD).read_bytes() == PIPELINE[SHARD]


def test_a_damaged_file_is_fetched_once_more(hub: Hub, tmp_path: Path) -> None:
    hub.script[SHARD] = [damaged]

    assert run("pull").exit_code == 0
    assert hub.ranges(SHARD) == [None, None]
    assert blob(tmp_path, SHARD).read_bytes() == PIPELINE[SHARD]


def test_a_file_that_is_damaged_twice_is_removed_and_said(hub: Hub, tmp_path: Path) -> None:
    hub.script[CHECKPOINT] = [damaged, damaged]

    text = refused("pull")
    assert text.startswith(f"engine.checkpoints.base: acme/fox-int4: {CHECKPOINT} arrived damaged twice")
    assert f"should be {sha256_of(QUANTISED[CHECKPOINT])}" in text
    assert not blob(tmp_path, CHECKPOINT).exists()
    assert not partial(tmp_path, CHECKPOINT).exists()


def test_a_file_of_the_wrong_size_is_fetched_anew(hub: Hub, tmp_path: Path) -> None:
    run("pull")
    os.truncate(blob(tmp_path, SHARD), 100)

    assert run("pull").exit_code == 0
    assert blob(tmp_path, SHARD).read_bytes() == PIPELINE[SHARD]


def test_too_little_room_is_said_before_the_first_byte(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = sum(map(len, [*PIPELINE.values(), QUANTISED[CHECKPOINT]]))
    needless = len(PIPELINE["README.md"]) + len(PIPELINE["transformer/diffusion_pytorch_model.safetensors"])
    missing = total - needless - len(PIPELINE["model_index.json"])  # the index is read first
    free = missing - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, free))

    text = refused("pull")
    assert text.startswith("the disk is too full: ")
    assert str(tmp_path / "cache") in text
    assert "HF_HOME" in text
    assert {name for name, _ in hub.sent} <= {"model_index.json"}

    free = missing
    assert run("pull").exit_code == 0


def test_a_disk_that_fills_up_is_said_and_what_arrived_stays(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = file_download.http_get

    def full(url: str, stream: Any, **options: Any) -> None:
        if CHECKPOINT not in url:
            return real(url, stream, **options)
        stream.write(QUANTISED[CHECKPOINT][:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pulling, "http_get", full)
    assert refused("pull").startswith("the disk is full: acme/fox-int4 does not fit into")
    monkeypatch.setattr(pulling, "http_get", real)
    assert run("pull").exit_code == 0
    assert hub.ranges(CHECKPOINT) == ["bytes=1000-"]


# What the hub refuses, and no hub.

REFUSALS = {
    "no such model": (404, "RepoNotFound", "engine.model: the hub has no model acme/fox"),
    "gated": (403, "GatedRepo", "engine.model: acme/fox wants its licence accepted on the hub"),
    "no such revision": (404, "RevisionNotFound", "engine.revision: acme/fox has no revision v9"),
}


@pytest.mark.parametrize(("status", "code", "complaint"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_the_hub_refuses_is_said_plainly(hub: Hub, tmp_path: Path, status: int, code: str, complaint: str) -> None:
    configure(tmp_path, {"engine": {**SETTINGS["engine"], "revision": "v9"}})
    hub.refusal = (status, code)

    assert refused("pull").startswith(complaint)


def test_a_file_that_the_repository_lacks_is_named(hub: Hub) -> None:
    del hub.repos["acme/fox-int4"][CHECKPOINT]

    assert refused("pull") == f"engine.checkpoints.base: acme/fox-int4 has no {CHECKPOINT}"


def test_a_hub_that_is_away_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    use_endpoint(monkeypatch, "http://127.0.0.1:9")

    assert "is not on this machine, and http://127.0.0.1:9 cannot be reached" in refused("pull")


@pytest.mark.parametrize("offline", [False, True], ids=["hub away", "HF_HUB_OFFLINE"])
def test_with_everything_here_no_hub_is_needed(hub: Hub, monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    run("pull")
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)

    result = run("pull")
    assert result.exit_code == 0, result.exception
    assert "acme/fox is here, and stays as it is: " in result.output


def test_a_worker_that_may_only_read_takes_what_is_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    run("pull")
    hub.commit = "f" * 40
    hub.repos["acme/fox"][SHARD] = content("a newer one")

    def refuse(path: str, *others: object) -> None:
        raise FileExistsError(path) if Path(path).is_dir() else OSError(errno.EROFS, "Read-only file system", path)

    monkeypatch.setattr(os, "mkdir", refuse)
    settings = EngineSettings.model_validate(SETTINGS["engine"])
    weights = find_weights(settings, download=True, alive=lambda: None, without=("transformer",))
    assert weights.revision == COMMIT
    assert find_checkpoint(settings.checkpoints["base"], download=True, alive=lambda: None).parent.name == COMMIT
    assert "the newest files of acme/fox-int4 are not on this machine, and " in refused("pull")


@pytest.mark.parametrize("lost", [SHARD, CHECKPOINT])
def test_offline_with_something_missing_says_what(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    run("pull")
    blob(tmp_path, lost).unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    assert "HF_HUB_OFFLINE is set" in refused("pull")
    result = run("verify")
    assert result.exit_code == 1
    assert f"{lost}\n" in result.output.partition("missing  ")[2]
    assert "To fetch what is missing: tenkaigen models pull" in result.output


# What is here.


def test_list_says_what_is_here_and_asks_nobody(hub: Hub, tmp_path: Path) -> None:
    empty = json.loads(run("list", "--json").output)
    assert [(one["setting"], one["complete"], one["path"]) for one in empty] == [
        ("engine.model", False, None),
        ("engine.checkpoints.base", False, None),
    ]
    assert "engine.model: acme/fox is not here\n" in run("list").output
    assert hub.asked == []

    run("pull")
    hub.asked.clear()
    pipeline, checkpoint = json.loads(run("list", "--json").output)
    assert (pipeline["complete"], pipeline["commit"], pipeline["pinned"]) == (True, COMMIT, False)
    assert checkpoint["bytes"] == len(QUANTISED[CHECKPOINT])
    assert Path(checkpoint["path"]).read_bytes() == QUANTISED[CHECKPOINT]
    name = f"acme/fox-int4/{CHECKPOINT}"
    assert f"{name} at {COMMIT}, 6.0 kB, not pinned, is in {checkpoint['path']}\n" in run("list").output
    assert hub.asked == []

    blob(tmp_path, SHARD).unlink()
    assert f"engine.model: acme/fox at {COMMIT} lacks 1 of its files; to name them: " in run("list").output


def test_verify_finds_what_is_damaged_and_says_what_to_do(hub: Hub, tmp_path: Path) -> None:
    run("pull")
    assert run("verify").exit_code == 0
    config = (tmp_path / "cache/models--acme--fox/snapshots" / COMMIT / "vae/config.json").resolve()
    for file in (blob(tmp_path, SHARD), config):
        file.write_bytes(b"x" + file.read_bytes()[1:])

    hub.asked.clear()
    result = run("verify")
    assert result.exit_code == 1
    assert hub.asked == []
    assert f"damaged  acme/fox: {SHARD}: its SHA-256 is " in result.output
    assert "damaged  acme/fox: vae/config.json: its SHA-1 is " in result.output
    commands = [line.strip() for line in result.output.splitlines() if line.startswith("  rm ")]
    assert commands == [f"rm {blob(tmp_path, SHARD)}", f"rm {config}"]

    for command in commands:  # as told
        Path(command.removeprefix("rm ")).unlink()
    assert run("pull").exit_code == 0
    assert run("verify").exit_code == 0


def test_without_the_hubs_listing_the_shards_are_still_known(hub: Hub, tmp_path: Path) -> None:
    run("pull")
    shutil.rmtree(tmp_path / "cache/models--acme--fox/trees")
    snapshot = tmp_path / "cache/models--acme--fox/snapshots" / COMMIT
    copy = tmp_path / "fox"  # a folder of this machine has no listing, either
    shutil.copytree(snapshot, copy)
    (copy / SHARD).unlink()
    shutil.rmtree(copy / "vae")
    configure(tmp_path, {"engine": {**SETTINGS["engine"], "model": "fox"}})

    (pipeline, _) = json.loads(run("list", "--json").output)
    assert pipeline["missing"] == [SHARD, "vae/"]


def test_files_of_this_machine_are_checked_as_far_as_they_tell(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(b"no")
    settings = {
        "engine": {"backend": "nunchaku", "model": "acme/fox", "checkpoints": {"m": {"file": "mine.safetensors"}}}
    }
    configure(tmp_path, settings)

    assert run("pull").exit_code == 0
    assert "damaged  mine.safetensors: mine.safetensors: it is no safetensors file" in run("verify").output
    (tmp_path / "mine.safetensors").unlink()
    assert refused("pull").startswith("engine.checkpoints.m: there is no file mine.safetensors")
    assert "missing  engine.checkpoints.m" in run("verify").output


def test_a_name_that_the_hub_cannot_have(hub: Hub, tmp_path: Path) -> None:
    configure(tmp_path, {"engine": {"backend": "diffusers", "model": "acme/fox--red"}})

    listed, verified = run("list"), run("verify")
    assert (listed.exit_code, verified.exit_code) == (0, 1)
    assert listed.output.startswith("engine.model: acme/fox--red is no name on the hub: ")
    assert verified.output == f"wrong    {listed.output}"


def test_backends_without_files_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    configure(tmp_path, {"engine": {"backend": "tiny"}})

    for command in ("pull", "list", "verify"):
        result = run(command)
        assert (result.exit_code, result.output) == (0, "engine.backend: tiny needs no model files.\n")
    assert json.loads(run("list", "--json").output) == []


# Real processes.


def started(hub: Hub, folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.origin, "HF_HUB_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "tenkaigen_worker", "models", "pull"]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_two_processes_fetch_every_file_once(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    hub.script[CHECKPOINT] = [held(begun, go_on, 100)]
    other = started(hub, tmp_path)
    begun.wait()
    report = model_files.Bars.report

    def watched(self: model_files.Bars, file: pulling.RemoteFile, phase: pulling.Phase, done: int) -> None:
        if phase == "waiting":
            go_on.set()
        report(self, file, phase, done)

    monkeypatch.setattr(model_files.Bars, "report", watched)
    assert run("pull").exit_code == 0
    assert go_on.is_set()
    output, _ = other.communicate()
    assert other.returncode == 0, output
    assert hub.ranges(CHECKPOINT) == [None]
    assert hub.ranges(SHARD) == [None]
    assert blob(tmp_path, CHECKPOINT).read_bytes() == QUANTISED[CHECKPOINT]


def test_ctrl_c_keeps_what_has_arrived(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, begun_writing = threading.Event(), threading.Event(), threading.Event()
    large = hub.repos["acme/fox-int4"][CHECKPOINT] = content("large", 25_000_000)
    hub.script[CHECKPOINT] = [held(begun, go_on, 15_000_000)]
    process = started(hub, tmp_path)
    begun.wait()
    growing = tmp_path / "cache/models--acme--fox-int4/blobs" / f"{sha256_of(large)}.incomplete"
    while not growing.stat().st_size:
        begun_writing.wait(0.02)  # the client writes when ten megabytes are together, and tells nobody
    process.send_signal(signal.SIGINT)
    go_on.set()

    output, _ = process.communicate()
    assert process.returncode == 130
    *_, last = output.splitlines()
    assert last == "Stopped. What has arrived stays: run it again to go on."
    assert "Traceback" not in output
    arrived = growing.stat().st_size
    assert arrived > 0

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10**7)
    assert run("pull").exit_code == 0
    assert hub.ranges(CHECKPOINT) == [None, f"bytes={arrived}-"]
    assert next(tmp_path.rglob(sha256_of(large))).read_bytes() == large


def test_only_one_thread_at_a_time_says_how_far_it_is(hub: Hub) -> None:
    """The engine's process says it over one socket."""
    speaking = threading.Lock()

    def report(file: pulling.RemoteFile, phase: pulling.Phase, done: int) -> None:
        assert speaking.acquire(blocking=False)
        for _ in range(20):
            os.sched_yield()
        speaking.release()

    pulling.fetch(pulling.survey(Source("engine.model", "acme/fox")), report, threading.Event())


def test_every_checkpoint_is_needed_because_the_engine_loads_only_with_all_of_them() -> None:
    checkpoints = {"base": {"repo": "acme/fox-int4", "file": "base.safetensors"}, "other": {"file": "mine.safetensors"}}
    engine = {"backend": "nunchaku", "model": "acme/fox", "checkpoints": checkpoints}
    settings = [source.setting for source in needed(EngineSettings.model_validate(engine))]
    assert settings == ["engine.model", "engine.checkpoints.base", "engine.checkpoints.other"]


def test_the_model_for_edits_is_needed_for_what_is_its_own() -> None:
    settings = EngineSettings(backend="diffusers", edit_model="fox/edit", edit_revision="v1")
    _, edits = needed(settings)
    assert (edits.setting, edits.place, edits.revision, edits.revision_setting) == (
        *("engine.edit_model", "fox/edit", "v1"),
        "engine.edit_revision",
    )
    components = ["processor", "scheduler", "text_encoder", "tokenizer", "transformer", "vae"]
    loaded = [pattern for pattern in edits.patterns(components) if pattern.endswith(".safetensors")]
    assert loaded == ["processor/*.safetensors", "transformer/*.safetensors"]
    quantised = settings.model_copy(update={"backend": "nunchaku"})
    edits = needed(quantised)[1]
    assert [pattern for pattern in edits.patterns(components) if "*" in pattern and "*.json" not in pattern] == [
        *("processor/*.txt", "processor/*.safetensors")
    ]
    assert len(needed(settings.model_copy(update={"edit_model": None}))) == 1


@pytest.mark.parametrize(
    "said",
    [
        {"lfs": {"sha256": "../../elsewhere", "size": 4, "pointerSize": 134}},
        {"rfilename": "text_encoder/../../../elsewhere.json"},
    ],
)
def test_what_a_hub_says_never_leads_out_of_the_cache(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, said: dict[str, object]
) -> None:
    honest = hub.siblings("acme/fox")
    lying = [{**honest[-1], "rfilename": "vae/x.safetensors", **said}]
    monkeypatch.setattr(Hub, "siblings", lambda *_: [*honest, *lying])
    with pytest.raises(EngineError, match="without a checksum"):
        pulling.survey(Source("engine.model", "acme/fox"))
