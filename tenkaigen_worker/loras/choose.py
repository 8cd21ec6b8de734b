"""Which LoRAs a job gets, how strongly, and whether it may have them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tenkaigen_worker.config import LoraSettings
from tenkaigen_worker.errors import FieldProblem, InputError
from tenkaigen_worker.plugin.loras import Loras, no_such_lora
from tenkaigen_worker.plugin.types import Lora, LoraUse, Style
from tenkaigen_worker.recipe import AppliedLora


@dataclass(frozen=True, slots=True)
class ChosenLora:
    """A LoRA for one job, and how strongly it is applied."""

    lora: Lora
    weight: float

    @property
    def applied(self) -> AppliedLora:
        """It as a recipe has it."""
        return AppliedLora(self.lora.name, self.lora.sha256, self.weight)


def why_not(lora: Lora, settings: LoraSettings, base: str) -> str | None:
    """Say why jobs may not use a LoRA with a model whose LoRAs are for ``base``; ``None`` when they may."""
    if lora.base_model != base:
        return f"the LoRA {lora.name} was made for {lora.base_model}, and the model here takes those for {base}"
    if settings.licences == "any" or lora.commercial_use:
        return None
    licence = f" ({lora.licence})" if lora.licence else ""
    if lora.commercial_use is False:
        return f"the licence of the LoRA {lora.name}{licence} does not allow commercial use"
    if settings.licences == "commercial":
        return f"whether the licence of the LoRA {lora.name}{licence} allows commercial use is not known"
    return None


def usable(known: Loras, settings: LoraSettings, base: str) -> tuple[str, ...]:
    """The names of the LoRAs that jobs may use with this base model."""
    return tuple(lora.name for lora in known if why_not(lora, settings, base) is None)


def choose(
    *,
    known: Loras,
    settings: LoraSettings,
    base: str,
    asked: Sequence[LoraUse] = (),
    franchise: str | None = None,
    style: Style | None = None,
    mode_lora: str | None = None,
    prompt: str = "",
) -> tuple[ChosenLora, ...]:
    """Choose a job's LoRAs: those it asks for, its franchise's, style's and mode's, then those that its prompt names.

    A LoRA that is named twice counts once, as it was named first. ``prompt`` is what the user wrote: a LoRA that may
    not be used, or for which no place is left, is not looked for in it. ``base`` is ``Model.base``.

    Raises ``InputError`` with every problem, each for its field: ``loras``, ``franchise``, ``style`` or ``mode``.
    """
    chosen: dict[str, ChosenLora] = {}
    problems = []
    for field, name, weight in _wanted(asked, franchise, style, mode_lora):
        lora = known.find(name)
        if lora is None:
            problems.append(FieldProblem(field, no_such_lora(name, usable(known, settings, base))))
        elif refusal := why_not(lora, settings, base):
            problems.append(FieldProblem(field, refusal))
        else:
            chosen.setdefault(lora.name, ChosenLora(lora, lora.weight if weight is None else weight))
    if len(chosen) > settings.max_per_job:
        listed = ", ".join(chosen)
        problems.append(FieldProblem("loras", f"at most {settings.max_per_job} LoRAs at once, not {listed}"))
    if problems:
        raise InputError.of(problems)

    for lora in known.named_in(prompt):
        if len(chosen) < settings.max_per_job and why_not(lora, settings, base) is None:
            chosen.setdefault(lora.name, ChosenLora(lora, lora.weight))
    return tuple(chosen.values())


def with_trigger_words(prompt: str, loras: Sequence[ChosenLora]) -> str:
    """Put the LoRAs' trigger words before a prompt, each once, but for those that it has already."""
    there = prompt.casefold()
    words = dict.fromkeys(word for one in loras for word in one.lora.trigger_words if word.casefold() not in there)
    return ", ".join([*words, prompt])


def _wanted(
    asked: Sequence[LoraUse], franchise: str | None, style: Style | None, mode_lora: str | None
) -> Iterator[tuple[str, str, float | None]]:
    """Every LoRA that is named: the field that names it, the name, and its weight where one is given."""
    yield from (("loras", use.name, use.weight) for use in asked)
    if franchise is not None:
        yield "franchise", franchise, None
    if style is not None:
        yield from (("style", use.name, use.weight) for use in style.loras)
    if mode_lora is not None:
        yield "mode", mode_lora, None
