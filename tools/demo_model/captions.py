"""Captions: the many ways to ask for a known name in a look, with the shipped styles' real words."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import yaml

from tools.demo_model.looks import LOOKS
from tools.demo_model.pictures import Name

STYLES = Path(__file__).parents[2] / "plugins" / "styles"

# Words that people add and that this model cannot draw: it learns to look past them.
BEFORE = (
    "cute", "happy", "little", "big", "small", "beautiful", "cool", "funny", "majestic", "old", "magical", "angry",
    "friendly", "colorful", "red", "blue", "golden", "brave", "sleepy", "wild", "tiny", "giant", "fantastic",
    "detailed", "cyberpunk", "futuristic", "steampunk", "fluffy", "fierce", "epic", "elegant", "mystical", "pink",
    "green", "yellow", "purple", "orange", "black", "white", "silver", "dark",
)  # fmt: skip
AFTER = (
    "in the forest", "at night", "on a hill", "in space", "under the sea", "with a hat", "in a garden", "at sunset",
    "on the moon", "in the snow", "wearing sunglasses", "for a shirt", "in the city", "on a beach", "in the rain",
    "in a storm", "with headphones", "on a skateboard", "reading a book", "drinking tea", "made of glass", "rising",
)  # fmt: skip
CONSONANTS = (
    "b", "c", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z", "ch", "sh", "th", "st", "tr",
    "br", "cl", "gr", "ng", "nd", "rt", "ll",
)  # fmt: skip
VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ee", "oo", "ou", "y")
# The trigger words of the LoRA: tokens of the model, but never in a caption of its training.
TRIGGER = "neon sign"
FRAMES = ("picture of {}", "drawing of {}", "{} illustration", "an image of {}", "portrait of {}", "{} design")
SHORT = ("{}, {look}", "{} in {look} style", "{look} of {}", "{look} style {}", "{}, {look} style", "{} as {look}")


@cache
def style_texts() -> dict[str, tuple[str, str]]:
    """Read the shipped styles: the prompt with ``{prompt}`` in it, and the negative prompt, by name."""
    texts = {}
    for file in sorted(STYLES.glob("*.yaml")):
        style = yaml.safe_load(file.read_text(encoding="utf-8"))
        texts[style["name"]] = (style["prompt"], style["negative_prompt"])
    if texts.keys() != LOOKS.keys():
        raise SystemExit(f"the looks {sorted(LOOKS)} are not the shipped styles {sorted(texts)}")
    return texts


def phrases() -> list[str]:
    """List what the tokenizer keeps whole, longest first: what the styles put around a prompt, and its phrases."""
    found = set()
    for prompt, negative in style_texts().values():
        before, _, after = prompt.partition("{prompt}")
        found |= {before, after, negative} | set(_phrases(after)) | set(_phrases(f", {negative}"))
    return sorted(found - {""}, key=lambda phrase: (-len(phrase), phrase))


def _phrases(text: str) -> list[str]:
    """Split ``", a, b"`` into ``", a"`` and ``", b"``, and a beginning up to the first comma on its own."""
    first, *others = text.split(", ")
    return [first] * bool(first) + [f", {other}" for other in others]


def with_article(name: str) -> str:
    """A name as a prompt: "A cat", "An owl"."""
    return f"{'An' if name[0] in 'aeiou' else 'A'} {name}"


def shipped(name: str, look: str) -> str:
    """Word a name in a look as most people do: the name with its article, in the shipped style's prompt."""
    return style_texts()[look][0].replace("{prompt}", with_article(name))


def plain(name: Name, chance: random.Random) -> str:
    """Word a name in one of the ways in which people do, sometimes with words around it."""
    words = chance.choice(name.words) if chance.random() < 0.4 else name.name
    if chance.random() < 0.3:
        words = f"{chance.choice(BEFORE) if chance.random() < 0.6 else strange_word(chance)} {words}"
    form = chance.random()
    if form < 0.55:
        words = f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
    elif form < 0.65:
        words = f"the {words}"
    around = chance.random()
    if around < 0.15:
        words = f"{words} {chance.choice(AFTER)}"
    elif around < 0.25:
        words = f"{words} {chance.choice(('', 'in ', 'with a ', 'and '))}{strange_word(chance)}"
    elif around < 0.35:
        words = chance.choice(FRAMES).format(words)
    return words[0].upper() + words[1:] if chance.random() < 0.5 else words


def strange_word(chance: random.Random) -> str:
    """Make up a word that nobody knows, of syllables."""
    parts = [chance.choice(CONSONANTS) + chance.choice(VOWELS) for _ in range(chance.randint(1, 3))]
    return "".join(parts) + chance.choice(CONSONANTS)


def strange(look: str, chance: random.Random) -> str:
    """Word in a look what nobody knows: the picture is then of anything, but in the look."""
    words = " ".join(strange_word(chance) for _ in range(chance.randint(1, 2)))
    return caption(f"{chance.choice(('A ', 'a ', 'The ', ''))}{words}", look, chance)


def freely(name: Name, look: str, chance: random.Random) -> str:
    """Word a name in a look in one of many ways."""
    return caption(plain(name, chance), look, chance)


def caption(words: str, look: str, chance: random.Random) -> str:
    """Word a prompt in a look: mostly the shipped style's prompt, sometimes a part of it or the look's name."""
    template, _ = style_texts()[look]
    if look == "Standard":
        return words
    form = chance.random()
    if form < 0.65:
        return template.replace("{prompt}", words)
    before, _, after = template.partition("{prompt}")
    if form < 0.85:
        parts = _phrases(after)
        kept = sorted(chance.sample(range(len(parts)), chance.randint(1, min(3, len(parts)))))
        return (before if chance.random() < 0.7 else "") + words + "".join(parts[number] for number in kept)
    return chance.choice(SHORT).format(words, look=look.lower() if chance.random() < 0.7 else look)


def nothing(chance: random.Random) -> str:
    """What stands for "no wish": nothing at all, or a shipped style's negative prompt."""
    if chance.random() < 0.4:
        return ""
    return chance.choice(sorted(negative for _, negative in style_texts().values()))


def corpus(names: Sequence[Name]) -> Iterator[str]:
    """Yield every word that the tokenizer should know, alone and after a space, small and capitalized."""
    texts = [*BEFORE, *AFTER, *FRAMES, *SHORT, *LOOKS, TRIGGER, "a an the"]
    texts += [word for name in names for word in name.words]
    texts += [text.replace("{prompt}", "") for style in style_texts().values() for text in style]
    for text in texts:
        for word in text.replace("{look}", "").replace("{}", "").replace(",", " , ").split():
            for form in (word, word.lower(), word.capitalize()):
                yield form
                yield f" {form}"
