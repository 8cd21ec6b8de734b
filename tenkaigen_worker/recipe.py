"""The recipe: a request fully resolved, nothing left to choose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tenkaigen_worker.errors import FieldProblem, InputError
from tenkaigen_worker.names import find, unknown
from tenkaigen_worker.plugin.types import PLACEHOLDER, Prompt, Style

if TYPE_CHECKING:  # the engine's process imports this module, and has no use for pydantic
    from tenkaigen_worker.config_generation import GenerationSettings, ModeSettings
    from tenkaigen_worker.references.resolve import Edited, Fitted
    from tenkaigen_worker.request import Request

SIDE_STEP = 16  # pixels; the model's own grid
MIN_SIDE = 64
MAX_SIDE = 4096
MAX_PIXELS = 2048 * 2048
EDIT_PIXELS = 1024 * 1024  # what diffusers' QwenImageEditPlusPipeline scales each picture to that it changes
SEEDS = 2**32
WARM_UP_SIDE = 256

# How much of a reference is drawn anew, unless a request says: without a mask, what diffusers' Qwen-Image pipelines
# take; with one, all that is white in it.
DEFAULT_STRENGTH = 0.6
DEFAULT_STRENGTH_WITH_MASK = 1.0

VERSION = 1
BASE_SCHEDULER = "base"
BASE_MODEL = "Qwen/Qwen-Image"


@dataclass(frozen=True, slots=True)
class Model:
    """What a loaded model is called, and the size in pixels that it likes best.

    ``default_steps`` is set by a model for which more steps make no sense, unless somebody asks for them. ``demo``
    marks a demonstration model. ``base`` is the model whose LoRAs fit this one. ``checkpoints`` has the quantised
    transformers that it can draw with, the usual one first: their names in the configuration, and what recipes call
    them. ``edit_model`` and ``edit_revision`` are of the model that changes pictures as it is told to, if there is one.
    """

    backend: str
    name: str
    revision: str | None
    default_width: int
    default_height: int
    demo: bool = False
    default_steps: int | None = None
    base: str = BASE_MODEL
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    edit_model: str | None = None
    edit_revision: str | None = None

    def checkpoint(self, name: str | None) -> str | None:
        """What recipes call the checkpoint of this name, or the usual one; ``None`` for a model that has none."""
        usual = next(iter(self.checkpoints.values()), None)
        return usual if name is None else self.checkpoints.get(name, usual)


@dataclass(frozen=True, slots=True)
class AppliedLora:
    """A LoRA of a recipe: the very file, by its SHA-256 (hex), and how strongly it is applied."""

    name: str
    sha256: str
    weight: float


class NoSuchMode(InputError):
    """No job can be made in ``mode`` here; another worker may have it."""

    def __init__(self, field: str, message: str, mode: str) -> None:
        problem = FieldProblem(field, message)
        super().__init__(str(problem), problems=[problem])
        self.mode = mode


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides a picture, and nothing else: no path, no user id.

    Kept with the job and inside the PNG. ``width`` and ``height`` in pixels, multiples of 16. ``seeds`` has one entry
    per picture. ``guidance_scale`` is diffusers' ``true_cfg_scale``; 1.0 means no guidance and one forward a step.
    ``checkpoint`` is the quantised transformer that it is drawn with, where the model has any.
    ``reference`` and ``mask`` are the SHA-256 (hex) of the files that were given; ``strength``, from 0 to 1, is how
    much of the reference is drawn anew. ``references`` are those of the pictures of an edit, in their order: the prompt
    then says what to change. ``demo`` marks pictures of a demonstration backend.
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
    checkpoint: str | None = None
    loras: tuple[AppliedLora, ...] = ()
    reference: str | None = None
    mask: str | None = None
    strength: float | None = None
    references: tuple[str, ...] = ()
    demo: bool = False
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        loras = [asdict(lora) for lora in self.loras]
        return {**asdict(self), "seeds": list(self.seeds), "loras": loras, "references": list(self.references)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """The recipe that :meth:`to_json` wrote; raises ``ValueError`` on anything else."""
        if data.get("version") != VERSION:
            raise ValueError(f"not a recipe of version {VERSION}: its version is {data.get('version')!r}")
        try:
            loras = tuple(AppliedLora(**lora) for lora in data.get("loras", ()))
            references = tuple(data.get("references", ()))
            return cls(**{**data, "seeds": tuple(data["seeds"]), "loras": loras, "references": references})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a recipe of version {VERSION}: {error}") from error


def warm_up(model: Model) -> Recipe:
    """Resolve the smallest picture that uses every part of a model: it shows whether an engine works at all.

    Two steps: the model's own scheduler divides by zero when it has only one.
    """
    return Recipe(
        prompt="a grey square",
        negative_prompt="",
        style="",
        width=WARM_UP_SIDE,
        height=WARM_UP_SIDE,
        mode="",
        steps=2,
        guidance_scale=1.0,
        scheduler=BASE_SCHEDULER,
        seeds=(0,),
        backend=model.backend,
        model=model.name,
        revision=model.revision,
        checkpoint=model.checkpoint(None),
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


def choose_mode(request: Request, style: Style, generation: GenerationSettings) -> str:
    """The name of a job's mode: its own, else its style's, else the default one.

    Raises :class:`NoSuchMode` when there is none of that name, ``InputError`` when the job asks for steps or
    guidance beyond the mode's bounds, or gives pictures that it has no use for.
    """
    name = request.mode or generation.default_mode
    if request.mode is None and style.mode is not None:
        found = find(style.mode, generation.modes)
        if found is None:
            text = unknown("mode", style.mode, generation.mode_names)
            raise NoSuchMode("style", f"the style {style.name} cannot be used here: {text}", style.mode)
        name = found
    mode = generation.modes[name]
    pictures = _wrong_for_an_edit(name, request) if mode.edit else _only_for_edits(name, request, generation)
    if problems := [*_beyond(name, mode, request), *pictures]:
        raise InputError.of(problems)
    return name


def _beyond(name: str, mode: ModeSettings, request: Request) -> Iterator[FieldProblem]:
    if request.steps is not None and not mode.min_steps <= request.steps <= mode.max_steps:
        bounds = f"a whole number from {mode.min_steps} to {mode.max_steps}"
        yield FieldProblem("steps", f"must be {bounds} in the mode {name}, not {request.steps}")
    if request.guidance_scale is not None and request.guidance_scale > mode.max_guidance_scale:
        most = mode.max_guidance_scale
        bounds = "1" if most == 1 else f"a number from 1 to {most:g}"
        yield FieldProblem("guidance_scale", f"must be {bounds} in the mode {name}, not {request.guidance_scale:g}")


def _wrong_for_an_edit(name: str, request: Request) -> Iterator[FieldProblem]:
    if request.reference is None:
        yield FieldProblem("reference", f"is missing: the mode {name} changes a picture, so give one")
    for field_name in ("mask", "strength"):
        if getattr(request, field_name) is not None:
            text = f"has no meaning in the mode {name}, where the prompt says what to change: leave it out"
            yield FieldProblem(field_name, text)


def _only_for_edits(name: str, request: Request, generation: GenerationSettings) -> Iterator[FieldProblem]:
    if request.more_references is not None:
        edits = ", ".join(other for other in generation.mode_names if generation.modes[other].edit)
        advice = f"leave them out, or ask for the mode {edits}" if edits else "leave them out"
        yield FieldProblem("more_references", f"cannot be used in the mode {name}, which takes one reference: {advice}")


def resolve(
    request: Request,
    *,
    prompt: Prompt,
    style: Style,
    generation: GenerationSettings,
    model: Model,
    seed: int,
    loras: Sequence[AppliedLora] = (),
    given: Fitted | None = None,
    edited: Edited | None = None,
) -> Recipe:
    """Settle everything a request left open.

    Its own word counts first, then its style's, its mode's, the settings', and the model's; a style's steps and
    guidance count within the mode's bounds. ``prompt`` has been through the style and the plugins. ``seed`` is taken
    when none was asked for; further pictures get the seeds that follow it. ``given`` is what the job starts from and
    ``edited`` what it changes, which also say its size. Raises :class:`~tenkaigen_worker.errors.InputError` when one
    side was asked for that is too long for the other side's default, and as :func:`choose_mode` does.
    """
    name = choose_mode(request, style, generation)
    mode = generation.modes[name]
    if pictures := given or edited:
        width, height = pictures.width, pictures.height
    else:
        width = request.width or style.width or generation.default_width or model.default_width
        height = request.height or style.height or generation.default_height or model.default_height
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
        steps=_steps(request, style, mode, model),
        guidance_scale=_guidance_scale(request, style, mode),
        scheduler=mode.scheduler,
        seeds=tuple((first + index) % SEEDS for index in range(request.count)),
        backend=model.backend,
        model=model.edit_model if edited and model.edit_model else model.name,
        revision=model.edit_revision if edited else model.revision,
        checkpoint=model.checkpoint(mode.checkpoint),
        loras=tuple(loras),
        reference=given.reference_sha256 if given else None,
        mask=given.mask_sha256 if given else None,
        strength=_strength(request, given) if given else None,
        references=edited.sha256 if edited else (),
        demo=model.demo,
    )


def _steps(request: Request, style: Style, mode: ModeSettings, model: Model) -> int:
    if request.steps is not None:
        return request.steps
    if style.steps is not None and mode.min_steps <= style.steps <= mode.max_steps:
        return style.steps
    return min(mode.steps, model.default_steps or mode.steps)


def _guidance_scale(request: Request, style: Style, mode: ModeSettings) -> float:
    if request.guidance_scale is not None:
        return request.guidance_scale
    if style.guidance_scale is not None and style.guidance_scale <= mode.max_guidance_scale:
        return style.guidance_scale
    return mode.guidance_scale


def _strength(request: Request, given: Fitted) -> float:
    if request.strength is not None:
        return request.strength
    return DEFAULT_STRENGTH if given.mask is None else DEFAULT_STRENGTH_WITH_MASK


def _too_large(request: Request, width: int, height: int) -> FieldProblem:
    asked, other = ("width", "height") if request.height is None else ("height", "width")
    text = f"{width} x {height} is {width * height} pixels, and a picture may have at most {MAX_PIXELS}: ask for"
    return FieldProblem(asked, f"{text} a smaller {asked}, or for a {other} too")
