"""What ``tenkaigen demo`` asks for is there: words that its model knows, shipped styles, a shipped LoRA."""

from __future__ import annotations

import re

import yaml

from tenkaigen_worker.cli.demo import FROM_THE_FIRST, FROM_WORDS
from tenkaigen_worker.resources import shipped
from tools.demo_model.pictures import read_names

STATEMENTS = [*FROM_WORDS.values(), *FROM_THE_FIRST.values()]


def names_in(folder: str) -> set[str]:
    return {yaml.safe_load(file.read_text())["name"] for file in (shipped("plugins") / folder).glob("*.yaml")}


def test_it_asks_for_what_is_there() -> None:
    asked = [match.groups() for text in STATEMENTS if (match := re.search(r"VALUES \('An? (.+?)', '(.+?)'", text))]
    assert len(asked) == len(STATEMENTS)
    assert {words for words, _ in asked} <= {word for name in read_names() for word in name.words}
    assert {style for _, style in asked} <= names_in("styles")
    assert set(re.findall(r'\["(.+?)"\]', " ".join(STATEMENTS))) == {"Neon Sign"} <= names_in("loras")
