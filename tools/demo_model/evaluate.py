"""Measure the exported model: does each picture show what was asked for, in the style asked for.

For every known name three pictures are drawn, in three of the nine styles with their shipped prompts, by the exported
folder and diffusers' own pipeline.

*Name*: all training pictures are sorted by their distance to the drawn one. The distance is the mean squared
difference of the pictures at 32 x 32 pixels (RGB from 0 to 1) plus that of their edges (the length of the grey
picture's gradient at 64 x 64, averaged to 32 x 32, four times amplified). Top 1: the nearest picture shows that name.
Top 5: that name is among the five names whose pictures are nearest.

*Other words* for the names are drawn once each, in the style Standard.

*Style*: a linear classifier on the same numbers, trained on the training pictures of every second name. Its own
accuracy on the pictures of the other names is printed beside the result.

    python -m tools.demo_model.evaluate FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import QwenImagePipeline
from torch import Tensor

from tools.demo_model.captions import shipped, style_texts
from tools.demo_model.data import make_pictures
from tools.demo_model.export import load_pipeline
from tools.demo_model.looks import LOOKS, SIDE
from tools.demo_model.pictures import HUES, Name, read_names

STEPS, GUIDANCE, SEEDS = 12, 4.0, 3  # steps and guidance as the worker has them for this model


@dataclass(frozen=True)
class Wish:
    """One picture to draw: number of the name, look, seed."""

    name: int
    look: str
    seed: int


def draw(pipe: QwenImagePipeline, prompt: str, negative: str, seed: int) -> Tensor:
    """Draw one picture, (3, 128, 128), bytes."""
    drawn = pipe(
        prompt=prompt,
        negative_prompt=negative,
        true_cfg_scale=GUIDANCE,
        width=SIDE,
        height=SIDE,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).images[0]
    return torch.from_numpy(np.round(drawn * 255).astype(np.uint8)).permute(2, 0, 1)


def features(pictures: Tensor) -> Tensor:
    """Answer the numbers that are compared, (n, 4 * 32 * 32): colours and edges at 32 x 32."""
    small = F.interpolate(pictures.float() / 255, size=(32, 32), mode="area")
    grey = F.interpolate(pictures.float().mean(1, keepdim=True) / 255, size=(65, 65), mode="area")
    down, right = grey.diff(dim=2)[..., :64], grey.diff(dim=3)[..., :64, :]
    edges = F.avg_pool2d(torch.hypot(down, right), 2) * 4
    return torch.cat([small, edges], dim=1).flatten(1)


def rank_names(drawn: Tensor, known: Tensor, names: int) -> list[int]:
    """Sort the names by the distance of their nearest picture to a drawn one."""
    distances = (known - drawn).square().mean(1).view(names, -1).amin(1)
    return distances.argsort().tolist()


class StyleClassifier:
    """A linear classifier of looks, trained on the pictures of every second name."""

    def __init__(self, known: Tensor, names: int) -> None:
        labels = torch.arange(len(LOOKS)).repeat(names * len(HUES))
        learned = (torch.arange(len(known)) // (len(HUES) * len(LOOKS))) % 2 == 0
        self.mean, self.std = known.mean(0), known.std(0) + 0.05
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(known.shape[1], len(LOOKS))
        optimizer = torch.optim.AdamW(self.linear.parameters(), lr=1e-3, weight_decay=0.1)
        inputs, targets = self._scaled(known[learned]), labels[learned]
        for _ in range(200):
            loss = F.cross_entropy(self.linear(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.accuracy = float((self.classify(known[~learned]) == labels[~learned]).float().mean())

    def _scaled(self, numbers: Tensor) -> Tensor:
        return (numbers - self.mean) / self.std

    @torch.inference_mode()
    def classify(self, numbers: Tensor) -> Tensor:
        """Answer the numbers of the looks, (n)."""
        return self.linear(self._scaled(numbers)).argmax(1)


def evaluate(pipe: QwenImagePipeline, names: Sequence[Name], pictures: Tensor, *, every: int = 1) -> str:
    """Draw, compare and put the result into words (Markdown)."""
    looks = list(LOOKS)
    known = features(pictures)
    classifier = StyleClassifier(known, len(names))
    wishes = [
        Wish(number, looks[(number * SEEDS + seed) % len(looks)], seed)
        for number in range(0, len(names), every)
        for seed in range(SEEDS)
    ]
    first = fifth = styled = 0
    misses, wrong_styles = [], []
    for wish in wishes:
        name = names[wish.name].name
        _, negative = style_texts()[wish.look]
        drawn = features(draw(pipe, shipped(name, wish.look), negative, wish.seed)[None])
        ranked = rank_names(drawn, known, len(names))
        first += ranked[0] == wish.name
        if wish.name in ranked[:5]:
            fifth += 1
        if ranked[0] != wish.name:
            place = ranked.index(wish.name) + 1
            misses.append(f"{name} ({wish.look}, seed {wish.seed}): nearest {names[ranked[0]].name}, itself {place}.")
        look = looks[int(classifier.classify(drawn))]
        styled += look == wish.look
        if look != wish.look:
            wrong_styles.append(f"{name} in {wish.look} (seed {wish.seed}): taken for {look}.")
    total = len(wishes)
    asked, missed = _other_words(pipe, names[::every], known, names)
    lines = [
        f"{total} pictures: {total // SEEDS} names, {SEEDS} seeds each, {STEPS} steps, guidance {GUIDANCE:g}.",
        "",
        "| | right | of |",
        "|---|---|---|",
        f"| name, top 1 | {first / total:.1%} | {total} |",
        f"| name, top 5 | {fifth / total:.1%} | {total} |",
        f"| style | {styled / total:.1%} | {total} (the classifier itself: {classifier.accuracy:.1%}) |",
        f"| other words for a name, top 1 | {1 - len(missed) / max(1, asked):.1%} | {asked} |",
        "",
    ]
    lines += _listed("Another name is nearest:", misses)
    lines += _listed("Another style:", wrong_styles)
    lines += _listed("Other words that draw something else:", missed)
    return "\n".join(lines)


def _other_words(
    pipe: QwenImagePipeline, asked: Sequence[Name], known: Tensor, names: Sequence[Name]
) -> tuple[int, list[str]]:
    """Draw each other word for these names once; answers how many there are, and which did not draw their name."""
    count, missed = 0, []
    _, negative = style_texts()["Standard"]
    for name in asked:
        for word in name.others:
            count += 1
            drawn = features(draw(pipe, shipped(word, "Standard"), negative, seed=0)[None])
            nearest = names[rank_names(drawn, known, len(names))[0]]
            if nearest is not name:
                missed.append(f"{word} for {name.name}: nearest {nearest.name}.")
    return count, missed


def _listed(heading: str, lines: Sequence[str]) -> list[str]:
    return [heading, "", *(f"- {line}" for line in lines), ""] if lines else []


def main() -> None:
    """Do what is asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the exported pipeline")
    parser.add_argument(
        "--work", type=Path, default=Path("build/demo_model"), help="where the training pictures are kept"
    )
    parser.add_argument("--every", type=int, default=1, help="take every n-th name only")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    names = read_names()
    pipe = load_pipeline(arguments.folder)
    print(evaluate(pipe, names, make_pictures(names, arguments.work), every=arguments.every))


if __name__ == "__main__":
    main()
