"""The recipe: a request fully resolved, nothing left to choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tenkaigen_worker.errors import FieldProblem, InputError
from tenkaigen_worker.plugin.types import PLACEHOLDER, Prompt, Style

if TYPE_CHECKING:  # the engine's process imports this module, and has no use for pydantic
    from tenkaigen_worker.config import GenerationSettings
    from tenkaigen_worker.request import Request

SIDE_STEP = 16  # pixels; the model's own grid
MIN_SIDE = 64
MAX_SIDE = 4096
MAX_PIXELS = 2048 * 2048
SEEDS = 2**32
WARM_UP_SIDE = 256

VERSION = 1
BASE_SCHEDULER = "base"
BASE_MODEL = "Qwen/Qwen-Image"


@dataclass(frozen=True, slots=True)
class Model:
    """What a loaded model is called, and the size in pixels that it likes best.

    ``default_steps`` is set by a model for which the modes' steps make no sense. ``demo`` marks an untrained one.
    ``base`` is the model whose LoRAs fit this one.
    """

    backend: str
    name: str
    revision: str | None
    default_width: int
    default_height: int
    demo: bool = False
    default_steps: int | None = None
    base: str = BASE_MODEL


@dataclass(frozen=True, slots=True)
class AppliedLora:
    """A LoRA of a recipe: the very file, by its SHA-256 (hex), and how strongly it is applied."""

    name: str
    sha256: str
    weight: float


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides a picture, and nothing else: no path, no user id.

    Kept with the job and inside the PNG. ``width`` and ``height`` in pixels, multiples of 16. ``seeds`` has one entry
    per picture. ``guidance_scale`` is diffusers' ``true_cfg_scale``; 1.0 means no guidance and one forward a step.
    ``reference`` and ``mask`` are the SHA-256 (hex) of the files that were given; ``strength``, from 0 to 1, is how
    much of the reference is drawn anew. ``demo`` marks pictures of a demonstration backend.
    """

    prompt: str
    negative_prompt: str
    style: str
    width: int
    height: int
    mode: str
    steps: int
    guidance_scale: float
    scheduler: str
    seeds: tuple[int, ...]
    backend: str
    model: str
    revision: str | None = None
    loras: tuple[AppliedLora, ...] = ()
    reference: str | None = None
    mask: str | None = None
    strength: float | None = None
    demo: bool = False
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        return {**asdict(self), "seeds": list(self.seeds), "loras": [asdict(lora) for lora in self.loras]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """The recipe that :meth:`to_json` wrote; raises ``ValueError`` on anything else."""
        if data.get("version") != VERSION:
            raise ValueError(f"not a recipe of version {VERSION}: its version is {data.get('version')!r}")
        try:
            loras = tuple(AppliedLora(**lora) for lora in data.get("loras", ()))
            return cls(**{**data, "seeds": tuple(data["seeds"]), "loras": loras})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a recipe of version {VERSION}: {error}") from error


def warm_up(model: Model) -> Recipe:
    """Resolve the smallest picture that uses every part of a model: it shows whether an engine works at all."""
    return Recipe(
        prompt="a grey square",
        negative_prompt="",
        style="",
        width=WARM_UP_SIDE,
        height=WARM_UP_SIDE,
        mode="",
        steps=1,
        guidance_scale=1.0,
        scheduler=BASE_SCHEDULER,
        seeds=(0,),
        backend=model.backend,
        model=model.name,
        revision=model.revision,
        demo=model.demo,
    )


def steps_to_run(steps: int, strength: float) -> int:
    """How many of a recipe's steps are run from a reference picture, as diffusers counts them; 0 draws nothing."""
    return steps - int(max(steps - min(steps * strength, steps), 0))


def apply_style(style: Style, text: str, negative: str | None) -> Prompt:
    """Put the user's words into a style's template. Braces in them are letters like any other."""
    negatives = [words for words in (negative, style.negative_prompt) if words]
    return Prompt(
        text=style.prompt.replace(PLACEHOLDER, text),
        negative=", ".join(negatives),
        style=style.name,
        asked=text,
    )


def resolve(request: Request, *, prompt: Prompt, generation: GenerationSettings, model: Model, seed: int) -> Recipe:
    """Settle everything a request left open: its own word counts first, then the settings', then the model's.

    ``prompt`` has been through the style and the plugins. ``seed`` is taken when none was asked for; further pictures
    get the seeds that follow it. Raises :class:`~tenkaigen_worker.errors.InputError` when one side was asked for that
    is too long for the other side's default.
    """
    name = request.mode or generation.default_mode
    mode = generation.modes[name]
    width = request.width or generation.default_width or model.default_width
    height = request.height or generation.default_height or model.default_height
    if width * height > MAX_PIXELS:
        raise InputError.of([_too_large(request, width, height)])

    first = seed if request.seed is None else request.seed
    return Recipe(
        prompt=prompt.text,
        negative_prompt=prompt.negative,
        style=prompt.style,
        width=width,
        height=height,
        mode=name,
        steps=request.steps or model.default_steps or mode.steps,
        guidance_scale=request.guidance_scale or mode.guidance_scale,
        scheduler=BASE_SCHEDULER,
        seeds=tuple((first + index) % SEEDS for index in range(request.count)),
        backend=model.backend,
        model=model.name,
        revision=model.revision,
        demo=model.demo,
    )


def _too_large(request: Request, width: int, height: int) -> FieldProblem:
    asked, other = ("width", "height") if request.height is None else ("height", "width")
    text = f"{width} x {height} is {width * height} pixels, and a picture may have at most {MAX_PIXELS}: ask for"
    return FieldProblem(asked, f"{text} a smaller {asked}, or for a {other} too")
