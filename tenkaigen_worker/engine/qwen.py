"""Running a recipe on a Qwen-Image pipeline of diffusers: encode, denoise, decode, with a word at every step."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tenkaigen_worker.engine.backend import DeviceBroken, OutOfMemory, Report, Stopped
from tenkaigen_worker.engine.base import Inputs, Picture, Step
from tenkaigen_worker.recipe import Model, Recipe

MAX_PROMPT_TOKENS = 1024  # what the pipeline allows at most; its default of 512 cuts longer prompts in silence

# Guidance needs a negative prompt; the model's authors use a single space for none.
NO_NEGATIVE_PROMPT = " "


@dataclass(frozen=True, slots=True)
class Words:
    """Encoded prompts, as keyword arguments of the pipeline; ``first`` is the picture they were encoded for."""

    first: int
    arguments: dict[str, Any]
    encode_ms: int


class QwenBackend:
    """A loaded ``QwenImagePipeline``."""

    def __init__(self, pipe: Any, model: Model, device: torch.device, dtype: torch.dtype) -> None:
        self._pipe = pipe
        self._device = device
        self.model = model
        self.device = str(device)
        self.dtype = str(dtype).removeprefix("torch.")
        pipe.set_progress_bar_config(disable=True)

    def pictures(
        self, recipe: Recipe, inputs: Inputs, *, first: int, lean: bool, report: Report, cancel: threading.Event
    ) -> Iterator[Picture]:
        """Make the pictures one after another, so that each one's bytes depend on its own seed alone."""
        with self._device_errors(), self._memory_for(lean=lean):
            words = self._encode(recipe, first, report, cancel)
            for index, seed in enumerate(recipe.seeds[first:], start=first):
                yield self._picture(recipe, words, index, seed, report, cancel)

    def _encode(self, recipe: Recipe, index: int, report: Report, cancel: threading.Event) -> Words:
        """Encode both prompts once for all pictures: the result equals what the pipeline's call would make."""
        _stop_if(cancel)
        started = time.monotonic()
        arguments: dict[str, Any] = {}
        with torch.no_grad():
            arguments["prompt_embeds"], arguments["prompt_embeds_mask"] = self._embed(recipe.prompt)
            if recipe.guidance_scale > 1:
                _stop_if(cancel)
                negative = self._embed(recipe.negative_prompt or NO_NEGATIVE_PROMPT)
                arguments["negative_prompt_embeds"], arguments["negative_prompt_embeds_mask"] = negative

        self._synchronize()
        report(Step("encode", index, 1, 1))
        return Words(index, arguments, _milliseconds_since(started))

    def _embed(self, text: str) -> tuple[Any, Any]:
        embeds, mask = self._pipe.encode_prompt(prompt=text, max_sequence_length=MAX_PROMPT_TOKENS)
        return embeds, mask

    def _picture(
        self, recipe: Recipe, words: Words, index: int, seed: int, report: Report, cancel: threading.Event
    ) -> Picture:
        started = denoised = time.monotonic()

        def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal denoised
            # Kernels are queued: without this, progress and cancel would run ahead of the GPU.
            self._synchronize()
            _stop_if(cancel)
            report(Step("denoise", index, step + 1, pipe.num_timesteps))
            if step + 1 == pipe.num_timesteps:
                denoised = time.monotonic()
                report(Step("decode", index, 0, 1))
            return {}

        _stop_if(cancel)
        image = self._pipe(
            **words.arguments,
            true_cfg_scale=recipe.guidance_scale,
            width=recipe.width,
            height=recipe.height,
            num_inference_steps=recipe.steps,
            # On the CPU whatever the device is: the same seed then starts from the same noise everywhere.
            generator=torch.Generator("cpu").manual_seed(seed),
            max_sequence_length=MAX_PROMPT_TOKENS,
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=[],
            output_type="pt",
            return_dict=False,
        )[0][0]
        pixels = to_rgb_bytes(image)
        _stop_if(cancel)

        timings = {
            "encode": words.encode_ms if index == words.first else 0,
            "denoise": round((denoised - started) * 1000),
            "decode": _milliseconds_since(denoised),
        }
        return Picture(index, seed, recipe.width, recipe.height, pixels, timings)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @contextmanager
    def _memory_for(self, *, lean: bool) -> Iterator[None]:
        """Decode in tiles while ``lean``, and leave no part of an offloaded model on the GPU after a broken run."""
        if lean:
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            self._pipe.vae.enable_tiling()
        try:
            yield
        except BaseException:
            self._pipe.maybe_free_model_hooks()
            raise
        finally:
            if lean:
                self._pipe.vae.disable_tiling()

    @contextmanager
    def _device_errors(self) -> Iterator[None]:
        """Tell apart what a smaller run, or only a new process, can help."""
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemory(str(error)) from None
        except RuntimeError as error:
            if "can't allocate memory" in str(error):
                raise OutOfMemory(str(error)) from None
            # Drivers and libraries have a wording each, and a context in doubt may spoil pictures: a reload is cheaper.
            if self._device.type == "cuda":
                first_line = str(error).partition("\n")[0]
                raise DeviceBroken(f"{self.device} failed and needs a new process: {first_line}") from error
            raise


def to_rgb_bytes(image: torch.Tensor) -> bytes:
    """Turn a picture, 3 x H x W with values from 0 to 1, into H x W x 3 bytes, rounded as diffusers does for PIL."""
    return image.float().mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy().tobytes()


def _stop_if(cancel: threading.Event) -> None:
    if cancel.is_set():
        raise Stopped


def _milliseconds_since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
