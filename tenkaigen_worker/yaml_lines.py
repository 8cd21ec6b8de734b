"""Reading YAML so that every value knows its line, and no message quotes a line that may hold a secret."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Key = tuple[str, ...]
"""Where a value stands: ``("engine", "backend")``. An item of a list is named by its number."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: on which line of the file or in which variable, under which key, and what.

    Lines are counted from 1; 0 stands for what is in no file.
    """

    line: int
    key: Key
    text: str
    variable: str = ""

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.variable, ".".join(self.key), self.text)))


@dataclass(frozen=True, slots=True)
class Document:
    """Plain values, the line each of them begins on, and what was wrong without spoiling the rest."""

    values: Mapping[str, Any]
    lines: Mapping[Key, int]
    problems: tuple[Problem, ...]


class NotReadable(Exception):
    """A text is no YAML that can be used here; ``line`` is counted from 1, 0 stands for the whole file."""

    def __init__(self, text: str, *, line: int = 0) -> None:
        super().__init__(text)
        self.line = line


_SYNTAX = (yaml.scanner.ScannerError, yaml.parser.ParserError)


class _Loader(yaml.SafeLoader):
    """The safe loader without aliases: they have no use here, and can make a small file endless."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not used here; repeat the value", mark)
        return super().compose_node(parent, index)


def read_document(path: Path) -> Document:
    """Read a file whose top level is a mapping, or raise :class:`NotReadable`; an empty file is an empty mapping."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise NotReadable("no such file") from None
    except OSError as error:
        raise NotReadable(f"cannot be read: {error.strerror}") from None

    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise NotReadable(f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8", line=line) from None

    builder = _Builder()
    values = builder.read(text)
    if not isinstance(values, dict | None):
        raise NotReadable("the top level must be keys with values, such as `key: value`", line=builder.lines[()])
    return Document(values or {}, builder.lines, tuple(builder.problems))


def parse_value(text: str) -> tuple[Any, tuple[Problem, ...]]:
    """Read one YAML value, as an environment variable holds it, or raise :class:`NotReadable`."""
    builder = _Builder()
    return builder.read(text), tuple(builder.problems)


class _Builder:
    """Turns YAML nodes into plain values and remembers their lines.

    Keys are taken as they are written: ``4:``, ``yes:`` and ``"4":`` are all text.
    """

    def __init__(self) -> None:
        self.lines: dict[Key, int] = {}
        self.problems: list[Problem] = []

    def read(self, text: str) -> Any:
        """Read a whole text; an empty one is ``None``."""
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
            return None if node is None else self._build(loader, node, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            # The error's own text quotes the line, and the line may hold a password: only its words are used.
            words = ", ".join(filter(None, (error.context, error.problem)))
            hint = "; text with braces or colons needs quotes" if isinstance(error, _SYNTAX) else ""
            raise NotReadable(f"not valid YAML: {words}{hint}", line=mark.line + 1 if mark else 1) from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise NotReadable(f"character U+{error.character:04X} is not allowed in YAML", line=line) from None
        except RecursionError:
            raise NotReadable("nested too deeply", line=1) from None

    def _build(self, loader: _Loader, node: yaml.Node, at: Key) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(at, line)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(loader, node, at)
        if isinstance(node, yaml.SequenceNode):
            return [self._build(loader, item, (*at, str(index))) for index, item in enumerate(node.value)]
        try:
            return loader.construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError, AttributeError):
            self.problems.append(Problem(line, at, "cannot be read; if it is text, put it in quotes"))
            return None

    def _mapping(self, loader: _Loader, node: yaml.MappingNode, at: Key) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(line, at, "a key must be a plain word"))
                continue
            key = (*at, key_node.value)
            if key_node.value in values:
                first = self.lines[key]
                self.problems.append(Problem(line, key, f"given twice; it is on line {first} already"))
                continue
            # A section's line is that of its name, a value's that of its key.
            self.lines[key] = line
            values[key_node.value] = self._build(loader, value_node, key)
        return values
