"""Edits: pictures that are changed as the prompt says, by the pipeline of Qwen-Image-Edit-2509 over the loaded weights.

Its text encoder sees the pictures, too: a processor cuts them into patches. How transformers loads one asks for
torchvision, for the sake of videos; pictures do not need it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import CONDITION_IMAGE_SIZE, calculate_dimensions
from PIL import Image
from transformers import Qwen2Tokenizer, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tenkaigen_worker.engine.base import Inputs
from tenkaigen_worker.engine.reference import open_picture
from tenkaigen_worker.errors import Code, EngineError, FieldProblem, InputError
from tenkaigen_worker.recipe import Recipe


class PictureProcessor(Qwen2VLProcessor):  # type: ignore[misc]  # transformers has no types
    """transformers' processor for pictures and text, without the part for videos."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


def make_processor(tokenizer: Any) -> PictureProcessor:
    """Make what cuts pictures into patches for the text encoder, as the real model's does, around a tokenizer."""
    return PictureProcessor(Qwen2VLImageProcessorPil(), tokenizer)


def load_processor(folder: Path) -> PictureProcessor:
    """Load the processor of an Edit pipeline that was saved to ``folder``; raises what transformers raises."""
    there = folder / "processor"
    return PictureProcessor(
        Qwen2VLImageProcessorPil.from_pretrained(there, local_files_only=True),
        Qwen2Tokenizer.from_pretrained(there, local_files_only=True),
    )


class EditPipeline(QwenImageEditPlusPipeline):  # type: ignore[misc]  # diffusers has no types
    """The pipeline for edits, over a VAE that may have another number type than the rest."""

    def _encode_vae_image(self, image: torch.Tensor, generator: Any) -> torch.Tensor:
        latents: torch.Tensor = super()._encode_vae_image(image.to(self.vae.dtype), generator)
        return latents.to(image.dtype)


@dataclass(frozen=True, slots=True)
class Edit:
    """The pictures of one run that are changed, RGB, with the SHA-256 of each; ``pipe`` is the pipeline for edits."""

    pipe: Any
    pictures: tuple[Image.Image, ...]
    sha256: tuple[str, ...]

    def encode(self, text: str, max_tokens: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encode a prompt with the pictures it is about, as the pipeline's own call does: embeddings and mask.

        Raises ``InputError`` for a text that has a picture's token in it: the processor would look for that picture.
        """
        for token in (self.pipe.processor.image_token, self.pipe.processor.video_token):
            if token in text:
                raise InputError.of([FieldProblem("prompt", f"may not contain {token}, which stands for a picture")])
        with _pictures_have_two_dimensions(self.pipe):
            embeds, mask = self.pipe.encode_prompt(
                prompt=text, image=[self._seen(picture) for picture in self.pictures], max_sequence_length=max_tokens
            )
        return embeds, mask

    def _seen(self, picture: Image.Image) -> Any:
        """A picture as the text encoder sees it: in its shape, with 384 x 384 pixels in area."""
        width, height = calculate_dimensions(CONDITION_IMAGE_SIZE, picture.width / picture.height)
        return self.pipe.image_processor.resize(picture, height, width)


def read_pictures(recipe: Recipe, inputs: Inputs) -> tuple[Image.Image, ...]:
    """Read what an edit changes; nothing where the recipe is none. Raises ``InputError`` for what is no picture."""
    if len(recipe.references) != len(inputs.references):
        text = f"an edit of {len(recipe.references)} pictures came with {len(inputs.references)} files"
        raise EngineError(Code.ENGINE_FAILED, text)
    named = zip(("reference", *["more_references"] * len(inputs.references)), inputs.references, strict=False)
    return tuple(open_picture(field, file).convert("RGB") for field, file in named)


@contextmanager
def _pictures_have_two_dimensions(pipe: Any) -> Iterator[None]:
    """Tell the text encoder which tokens are a picture's.

    transformers 5 only gives patches their place in two dimensions (mRoPE, Qwen2-VL, Wang et al. 2024) when it is told
    which tokens they are; the processor says so, and the pipeline of diffusers 0.42 does not pass it on. Without it
    patches would stand in one long line, as the model never saw them.
    """

    def tell(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if kwargs.get("image_grid_thw") is not None:
            kwargs = {"mm_token_type_ids": (kwargs["input_ids"] == pipe.processor.image_token_id).int(), **kwargs}
        return args, kwargs

    hook = pipe.text_encoder.register_forward_pre_hook(tell, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
