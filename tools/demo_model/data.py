"""The training pictures as one tensor on disk, and the order in which they lie there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tools.demo_model.looks import LOOKS
from tools.demo_model.pictures import HUES, Name, training_pictures


def make_pictures(names: Sequence[Name], folder: Path) -> Tensor:
    """Draw all pictures once: (names * hues * looks, 3, 128, 128), bytes, in this order; kept in a file."""
    file = folder / "pictures.pt"
    if file.exists():
        kept: Tensor = torch.load(file, weights_only=True)
        if len(kept) == len(names) * len(HUES) * len(LOOKS):
            return kept
    drawn = [torch.from_numpy(np.asarray(picture).copy()) for picture in training_pictures(names)]
    pictures = torch.stack(drawn).permute(0, 3, 1, 2).contiguous()
    torch.save(pictures, file)
    return pictures
