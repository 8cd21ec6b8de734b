"""What each hook is called with, and what it may answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenkaigen_worker.plugin.calls import Chain, WrongAnswer
from tenkaigen_worker.plugin.types import FinishedJob, PictureInfo, Prompt

if TYPE_CHECKING:
    from PIL.Image import Image


def _accept_prompt(answer: Any, prompt: Prompt) -> Prompt:
    if answer is None:
        return prompt
    if not isinstance(answer, Prompt):
        raise WrongAnswer(f"it answered {type(answer).__name__}, not a Prompt or None")
    return answer


def _accept_image(answer: Any, image: Image) -> Image:
    from PIL.Image import Image as PillowImage  # slow to import, and not needed without such a plugin

    if answer is None:
        return image
    if not isinstance(answer, PillowImage):
        raise WrongAnswer(f"it answered {type(answer).__name__}, not a PIL image or None")
    return answer


PROMPTS: Chain[Prompt] = Chain(lambda prompt: {"prompt": prompt}, _accept_prompt)


def images(info: PictureInfo) -> Chain[Image]:
    """Hand on a picture; all are told the same of it."""
    return Chain(lambda image: {"image": image, "info": info}, _accept_image)


def news(job: FinishedJob) -> Chain[None]:
    """Tell all of a job; what they answer does not matter."""
    return Chain(lambda _: {"job": job}, lambda answer, _: None)
