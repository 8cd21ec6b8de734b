"""Running a recipe on a Qwen-Image pipeline of diffusers: encode, denoise, decode, with a word at every step."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import QwenImageImg2ImgPipeline, QwenImageInpaintPipeline
from PIL import Image

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine import latents
from tenkaigen_worker.engine.adapters import Adapters
from tenkaigen_worker.engine.backend import OutOfMemory, Report, Stopped
from tenkaigen_worker.engine.base import Inputs, Picture, Step
from tenkaigen_worker.engine.checkpoints import Checkpoints
from tenkaigen_worker.engine.devices import fitting_batch
from tenkaigen_worker.engine.edit import Edit, EditPipeline, read_pictures
from tenkaigen_worker.engine.faults import device_errors, free_memory, synchronize
from tenkaigen_worker.engine.prompts import MAX_PROMPT_TOKENS, PromptEncoder
from tenkaigen_worker.engine.reference import Reference, read_reference
from tenkaigen_worker.engine.schedulers import make_scheduler
from tenkaigen_worker.errors import Code, EngineError
from tenkaigen_worker.offers import NO_LIMITS, Limits
from tenkaigen_worker.recipe import EDIT_PIXELS, Model, Recipe

DEFAULTS = EngineSettings()

log = logging.getLogger("tenkaigen.engine")


@dataclass(frozen=True, slots=True)
class Start:
    """What all pictures of a run start from, as the pipeline that draws them and its keyword arguments."""

    pipe: Any
    arguments: dict[str, Any]
    reference: Reference | None


@dataclass(frozen=True, slots=True)
class Run:
    """One call of :meth:`QwenBackend.pictures`: its recipe, how it speaks, and how it is stopped."""

    recipe: Recipe
    report: Report
    cancel: threading.Event

    def go_on(self) -> None:
        """Raise :class:`Stopped` when the run was asked to stop."""
        if self.cancel.is_set():
            raise Stopped


class QwenBackend:
    """A loaded ``QwenImagePipeline``, and its siblings that start from a picture; all share one set of weights.

    With ``checkpoints`` the pipeline comes with the usual one's transformer, and gets another when a recipe says so.
    ``tiles_above`` is how many pixels are decoded in one piece; ``limits`` is what the device can draw at all.
    ``stages_ms`` is filled by whoever loads. ``processor`` is that of the pipeline for edits, where they can be made.
    """

    def __init__(
        self,
        pipe: Any,
        model: Model,
        device: torch.device,
        dtype: torch.dtype,
        settings: EngineSettings = DEFAULTS,
        *,
        checkpoints: Checkpoints | None = None,
        tiles_above: int | None = None,
        limits: Limits = NO_LIMITS,
        processor: Any = None,
    ) -> None:
        self._pipe = pipe
        self._processor = processor
        self._base_scheduler = pipe.scheduler
        self._device = device
        self._dtype = dtype
        self._settings = settings
        self._checkpoints = checkpoints
        self._tiles_above = tiles_above
        self._prompts = PromptEncoder(pipe, device, settings.prompt_cache_bytes)
        self.model = model
        self.device = str(device)
        self.dtype = str(dtype).removeprefix("torch.")
        self.limits = limits
        self.stages_ms: dict[str, int] = {}
        pipe.set_progress_bar_config(disable=True)
        self._hold(pipe.transformer)

    def _hold(self, transformer: Any) -> None:
        """Draw with this transformer from now on; whatever refers to the one before is let go."""
        self._pipe.transformer = transformer
        self._siblings: dict[type, Any] = {}
        self._adapters = Adapters(
            torch.nn.Module() if transformer is None else transformer,
            self._device,
            self._dtype,
            self._settings.lora_cache_bytes,
        )

    def pictures(
        self, recipe: Recipe, inputs: Inputs, *, first: int, lean: bool, report: Report, cancel: threading.Event
    ) -> Iterator[Picture]:
        """Make the pictures: one by one, so that each one's bytes depend on its own seed alone, or in batches.

        In the leaner way they are made one by one and decoded in tiles. See :class:`~.backend.Backend`.
        """
        run = Run(recipe, report, cancel)
        run.go_on()
        reference, pictures = read_reference(recipe, inputs), read_pictures(recipe, inputs)
        timings = self._choose_checkpoint(run, first)
        edit = self._edit(recipe, pictures)
        with (
            device_errors(self._device),
            self._memory_for(recipe, lean=lean),
            self._adapters.applied(recipe.loras, inputs.loras) as lora_ms,
        ):
            started = time.monotonic()
            start = self._start(run, reference, edit)
            report(Step("encode", first, 1, 1))
            timings |= {"encode": _milliseconds_since(started)} | ({"lora": lora_ms} if recipe.loras else {})
            # The pipeline for edits takes one picture at a time.
            yield from self._draw(run, start, first, 1 if lean or edit else self._settings.max_batch, timings)

    def _choose_checkpoint(self, run: Run, index: int) -> dict[str, int]:
        """See to it that the recipe's transformer is the one that draws; answer what that took, if anything."""
        recipe = run.recipe
        # A model that is no quantised one has the transformer for edits under its own name.
        wanted = recipe.model if recipe.references and recipe.checkpoint is None else recipe.checkpoint
        if self._checkpoints is None or self._checkpoints.loaded(wanted):
            return {}
        run.report(Step("load", index, 0, 1))
        self._hold(None)
        transformer, taken = self._checkpoints.switch(wanted)
        self._hold(transformer)
        run.report(Step("encode", index, 0, 1))
        return {"checkpoint": taken}

    def _draw(self, run: Run, start: Start, index: int, most: int, timings: dict[str, int]) -> Iterator[Picture]:
        """Make the pictures from ``index`` on, at most ``most`` together; ``timings`` go with the first."""
        while left := len(run.recipe.seeds) - index:
            size = self._batch_size(min(most, left), run.recipe, start)
            began = time.monotonic()
            drawn = None
            try:
                with device_errors(self._device):
                    drawn = self._denoise(run, start, index, size)
            except OutOfMemory:
                if size == 1:
                    raise
            if drawn is None:
                # Not sooner: as long as the error is handled, its frames hold the tensors.
                log.info("A batch of %d does not fit; going on one by one", size, extra={"action": "batch_too_large"})
                free_memory(self._device)
                most = 1
                continue

            timings["denoise"] = _milliseconds_since(began)
            for one in torch.split(drawn, 1):
                yield self._picture(run, start, index, one, timings)
                index, timings = index + 1, {"encode": 0, "denoise": 0}

    def _edit(self, recipe: Recipe, pictures: tuple[Image.Image, ...]) -> Edit | None:
        """Put together what an edit needs; nothing where there are no pictures to change."""
        if not pictures:
            return None
        if self._processor is None:
            raise EngineError(Code.ENGINE_FAILED, "this engine makes no edits: name their model in engine.edit_model")
        pipe = self._sibling(EditPipeline, processor=self._processor)
        return Edit(pipe, pictures, recipe.references)

    def _start(self, run: Run, reference: Reference | None, edit: Edit | None) -> Start:
        """Encode what all pictures start from."""
        pipe, arguments = self._pipe, self._encode_prompts(run, edit)
        if edit is not None:
            return Start(edit.pipe, arguments | {"image": list(edit.pictures)}, None)
        if reference is not None:
            run.go_on()
            picture = latents.encode(self._pipe.vae, reference.pixels(), self._device)
            arguments |= {"image": picture, "strength": reference.strength}
            pipe = self._sibling(QwenImageImg2ImgPipeline)
            if (mask := reference.mask_cells(self._pipe.vae_scale_factor)) is not None:
                arguments |= {"mask_image": mask, "masked_image_latents": picture}
                pipe = self._sibling(QwenImageInpaintPipeline)
            synchronize(self._device)
        return Start(pipe, arguments, reference)

    def _encode_prompts(self, run: Run, edit: Edit | None) -> dict[str, Any]:
        """Encode both prompts once for all pictures: the result equals what the pipeline's own call would make."""
        recipe = run.recipe
        texts = {"": recipe.prompt}
        if recipe.guidance_scale > 1:
            texts["negative_"] = recipe.negative_prompt or " "  # what the model's authors use for none
        known = sum(self._prompts.knows(text, edit) for text in texts.values())

        started = time.monotonic()
        arguments: dict[str, Any] = {}
        for prefix, text in texts.items():
            run.go_on()
            embedding = self._prompts.encode(text, edit)
            arguments |= {f"{prefix}prompt_embeds": embedding.embeds, f"{prefix}prompt_embeds_mask": embedding.mask}
        synchronize(self._device)
        log.info(
            "Prompts encoded in %d ms, %d of %d from the cache",
            _milliseconds_since(started),
            known,
            len(texts),
            extra={"action": "prompts_encoded"},
        )
        return arguments

    def _denoise(self, run: Run, start: Start, index: int, size: int) -> torch.Tensor:
        """Draw ``size`` pictures from ``index`` on, as latents, N x channels x 1 x H/8 x W/8."""
        recipe, pipe = run.recipe, start.pipe

        def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            # Kernels are queued: without this, progress and cancel would run ahead of the GPU.
            synchronize(self._device)
            run.go_on()
            run.report(Step("denoise", index, step + 1, pipe.num_timesteps, size))
            return {}

        run.go_on()
        pipe.scheduler = make_scheduler(recipe.scheduler, self._base_scheduler)
        drawn = pipe(
            **start.arguments,
            true_cfg_scale=recipe.guidance_scale,
            width=recipe.width,
            height=recipe.height,
            num_inference_steps=recipe.steps,
            num_images_per_prompt=size,
            # On the CPU whatever the device is: the same seed then starts from the same noise everywhere.
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in recipe.seeds[index : index + size]],
            max_sequence_length=MAX_PROMPT_TOKENS,
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=[],
            output_type="latent",
            return_dict=False,
        )[0]
        unpacked: torch.Tensor = pipe._unpack_latents(drawn, recipe.height, recipe.width, pipe.vae_scale_factor)
        return unpacked

    def _picture(self, run: Run, start: Start, index: int, drawn: torch.Tensor, timings: dict[str, int]) -> Picture:
        """Decode one picture's latents."""
        recipe = run.recipe
        run.go_on()
        run.report(Step("decode", index, 0, 1))
        started = time.monotonic()
        pixels = latents.to_rgb_bytes(latents.decode(self._pipe.vae, drawn)[0])
        if start.reference is not None:
            pixels = start.reference.keep_unmasked(pixels)
        run.go_on()
        timings = {**timings, "decode": _milliseconds_since(started)}
        return Picture(index, recipe.seeds[index], recipe.width, recipe.height, pixels, timings)

    def _batch_size(self, most: int, recipe: Recipe, start: Start) -> int:
        """How many pictures to draw together."""
        if most == 1 or self._device.type != "cuda":
            return most
        tokens = recipe.width * recipe.height // 256 + start.arguments["prompt_embeds"].shape[1]
        return fitting_batch(most, tokens, self._pipe.transformer, self._device)

    def _sibling(self, kind: Any, **more: Any) -> Any:
        """Make the pipeline of another kind over the same weights, once."""
        if kind not in self._siblings:
            self._siblings[kind] = kind(**self._pipe.components, **more)
            self._siblings[kind].set_progress_bar_config(disable=True)
        return self._siblings[kind]

    @contextmanager
    def _memory_for(self, recipe: Recipe, *, lean: bool) -> Iterator[None]:
        """Decode in tiles while ``lean`` or large; in the end leave no part of an offloaded model on the GPU."""
        # Of an edit the VAE also sees its references, one after the other.
        pixels = max(recipe.width * recipe.height, EDIT_PIXELS if recipe.references else 0)
        tiles = lean or (self._tiles_above is not None and pixels > self._tiles_above)
        if lean:
            self._adapters.forget()
            free_memory(self._device)
        if tiles:
            self._pipe.vae.enable_tiling()
        try:
            yield
        finally:
            self._pipe.maybe_free_model_hooks()
            if tiles:
                self._pipe.vae.disable_tiling()


def _milliseconds_since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
