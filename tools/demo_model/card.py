"""The model card that lies in the exported folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tools.demo_model.captions import TRIGGER, style_texts
from tools.demo_model.pictures import Name

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# tiny: a demonstration model for tenkaigen_worker

A Qwen-Image pipeline in miniature: the real architecture (`QwenImagePipeline`, `AutoencoderKLQwenImage`, Qwen2.5-VL
as text encoder), {millions:.1f} million weights instead of 29 thousand million, trained from nothing on one computer
without a GPU. It is there so that everything can be tried on any machine within a minute. It is not a small Qwen-Image:
it knows {count} names in nine styles, and nothing else.

- **Size**: 128 x 128 pixels. The worker draws other sizes at 128 x 128 and scales them.
- **Names**, with other words for them: {names}.
- **Styles**: {styles}, asked for with the prompts that tenkaigen_worker ships in `plugins/styles/`.
- **Unknown words give something arbitrary**, in the style that was asked for. Around a name it looks past most words
  ("a cyberpunk cat at night" is a cat). It cannot draw two things, colours that a name does not have, or letters.
- **Seeds** choose the colours around the figure, not how it stands: it has seen two pictures of each name in each
  style.
- **LoRA**: `plugins/loras/neon_sign.safetensors` was trained on it, trigger words "{trigger}".

## Origin and licences

Trained on pictures of Noto Color Emoji (Google), drawn with the font of Debian's package `fonts-noto-color-emoji` and
turned into the styles by image filters. The emoji artwork is licensed under the Apache License 2.0, the font under the
SIL Open Font License 1.1. The model is licensed like tenkaigen_worker itself, under the Apache License 2.0. The program
that made it, from drawing the pictures to this folder, is `tools/demo_model/` in the repository of tenkaigen_worker.

## How well it does

Measured by `python -m tools.demo_model.evaluate` (its `--help` says how the distance is defined):

{report}
"""


def write_card(file: Path, names: Sequence[Name], report: str, weights: int) -> None:
    """Write the card, with the result of the evaluation (Markdown) and the number of weights."""
    text = CARD.format(
        millions=weights / 1e6,
        count=len(names),
        names=", ".join(f"{name.name} ({', '.join(name.others)})" if name.others else name.name for name in names),
        styles=", ".join(style_texts()),
        trigger=TRIGGER,
        report=report,
    )
    file.write_text(text, encoding="utf-8")
