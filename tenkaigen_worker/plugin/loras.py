"""The LoRAs in force: which name belongs to which, and which ones a prompt speaks of."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tenkaigen_worker.errors import FieldProblem, InputError
from tenkaigen_worker.names import fold, unknown
from tenkaigen_worker.plugin.catalog import Catalog
from tenkaigen_worker.plugin.problems import Problem
from tenkaigen_worker.plugin.types import Lora


@dataclass(frozen=True, slots=True)
class _Mention:
    """Where a prompt has a LoRA's name."""

    start: int
    end: int
    lora: Lora


class Loras:
    """LoRAs by name and alias; each name belongs to one, and ``problems`` says who wanted another's.

    One whose name or alias is taken is left out, unless it says ``replaces``.
    """

    def __init__(self, offered: Iterable[Lora] = ()) -> None:
        self._by_name: dict[str, Lora] = {}
        problems = []
        for lora in sorted(offered, key=lambda lora: lora.replaces):
            taken = {name: self._by_name[fold(name)] for name in _names(lora) if fold(name) in self._by_name}
            if taken and not lora.replaces:
                problems += [_conflict(lora, name, holder) for name, holder in taken.items()]
                continue
            replaced = self._by_name.get(fold(lora.name))
            self._by_name = {name: known for name, known in self._by_name.items() if known is not replaced}
            self._by_name |= {fold(name): lora for name in _names(lora)}
        self.problems = tuple(problems)
        self._all = sorted({lora.name: lora for lora in self._by_name.values()}.values(), key=_alphabetically)
        self._patterns = [
            (_whole_words(name), lora) for lora in self._all if lora.match_prompt for name in _names(lora)
        ]

    def __iter__(self) -> Iterator[Lora]:
        return iter(self._all)

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, as they are to be shown."""
        return tuple(lora.name for lora in self._all)

    @property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Every name with the further ones that mean the same."""
        return {lora.name: lora.aliases for lora in self._all}

    def find(self, name: str) -> Lora | None:
        """Find the LoRA that a name or an alias means."""
        return self._by_name.get(fold(name))

    def get(self, name: str, *, field: str = "loras") -> Lora:
        """Find it, or raise ``InputError`` for ``field`` that lists the names there are."""
        found = self.find(name)
        if found is None:
            raise InputError.of([FieldProblem(field, no_such_lora(name, self.names))])
        return found

    def named_in(self, prompt: str) -> tuple[Lora, ...]:
        """The LoRAs with ``match_prompt`` that a prompt names as whole words, in its order, each once.

        Where names overlap, the longest counts: ``One Piece Film Red`` is not also ``One Piece``.
        """
        text = _plain(prompt)
        found = [_Mention(*match.span(), lora) for pattern, lora in self._patterns for match in pattern.finditer(text)]
        kept: list[_Mention] = []
        for mention in sorted(found, key=lambda mention: (mention.start - mention.end, mention.start)):
            if all(mention.end <= other.start or other.end <= mention.start for other in kept):
                kept.append(mention)
        in_order = sorted(kept, key=lambda mention: mention.start)
        return tuple({mention.lora.name: mention.lora for mention in in_order}.values())


class Registered:
    """The LoRAs of all plugins: those of the files, as they are now, and those that Python offered at the start."""

    def __init__(self, files: Catalog[Lora], offered: Iterable[Lora]) -> None:
        self._files = files
        self._offered = tuple(offered)
        self._settle()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with files and names now."""
        return (*self._files.problems, *self.loras.problems)

    def refresh(self) -> bool:
        """Read files that changed; say whether there was any."""
        changed = self._files.refresh()
        if changed:
            self._settle()
        return changed

    def _settle(self) -> None:
        self.loras = Loras([*self._files.items, *self._offered])


def no_such_lora(name: str, names: Iterable[str]) -> str:
    """Say that no LoRA has this name, and which there are."""
    known = list(names)
    return unknown("LoRA", name, known) if known else f"there is no LoRA {name[:60]!r}: none can be used here"


def _names(lora: Lora) -> tuple[str, ...]:
    return (lora.name, *lora.aliases)


def _alphabetically(lora: Lora) -> str:
    return lora.name.casefold()


def _conflict(lora: Lora, name: str, holder: Lora) -> Problem:
    text = f"{holder.origin} already has a LoRA called {name!r}: rename one, or say 'replaces: true' here"
    return Problem(lora.origin, None, text)


def _plain(text: str) -> str:
    """Make texts comparable that are written with other letters: composed or not, small or capital."""
    return unicodedata.normalize("NFC", text.casefold())


def _whole_words(name: str) -> re.Pattern[str]:
    """Match a name as names are compared, with no letter or digit directly before or after it."""
    words = [re.escape(word) for word in re.split(r"[\s_-]+", _plain(name)) if word]
    return re.compile(r"(?<![^\W_])" + r"[\s_-]*".join(words) + r"(?![^\W_])")
