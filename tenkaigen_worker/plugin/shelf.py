"""All styles, or all templates, of a process by their names: each name belongs to one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic

from tenkaigen_worker.errors import FieldProblem, InputError
from tenkaigen_worker.names import fold, unknown
from tenkaigen_worker.plugin.catalog import Catalog, T
from tenkaigen_worker.plugin.problems import Problem


class Shelf(Generic[T]):
    """What stands in files, read again when they change, beside what plugins ``offered`` when they were loaded.

    ``kind`` is the word for one of them.
    """

    def __init__(self, kind: str, files: Catalog[T], offered: Iterable[T] = ()) -> None:
        self._kind = kind
        self._files = files
        self._offered = tuple(offered)
        self._settle()

    @property
    def items(self) -> tuple[T, ...]:
        """Everything, by name."""
        return tuple(self._by_name.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The names of :attr:`items`, as they are to be shown."""
        return tuple(item.name for item in self._by_name.values())

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with the files, and who got no name."""
        return (*self._files.problems, *self._conflicts)

    def get(self, name: str) -> T | None:
        """Find one, however its name is spelled."""
        return self._by_name.get(fold(name))

    def find(self, name: str) -> T:
        """Find one; raises ``InputError`` that lists the names there are."""
        known = self.get(name)
        if known is None:
            raise InputError.of([FieldProblem(self._kind, unknown(self._kind, name, self.names))])
        return known

    def refresh(self) -> bool:
        """Read files that changed; say whether there was anything."""
        changed = self._files.refresh()
        if changed:
            self._settle()
        return changed

    def _settle(self) -> None:
        """Give every name to one. Those that replace others come last, whatever the load order."""
        settled: dict[str, T] = {}
        conflicts: list[Problem] = []
        for item in sorted((*self._files.items, *self._offered), key=lambda item: item.replaces):
            holder = settled.get(fold(item.name))
            if holder and not item.replaces:
                text = f"{holder.origin} already has a {self._kind} {holder.name!r}"
                conflicts.append(Problem(item.origin, None, f"{text}: rename one, or say 'replaces: true' here"))
            else:
                settled[fold(item.name)] = item

        self._by_name = dict(sorted(settled.items(), key=lambda entry: entry[1].name.casefold()))
        self._conflicts = tuple(conflicts)
