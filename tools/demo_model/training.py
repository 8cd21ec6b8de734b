"""What both trainings share: the Muon optimizer, a moving average of the weights, and checkpoints to go on from."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are made orthogonal (Jordan et al., 2024), for matrices and convolution kernels.

    ``torch.optim.Muon`` takes matrices only; here a kernel counts as the matrix of its output channels.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                # Of a three-dimensional kernel only the last time slice is trained.
                weight, gradient = (p[:, :, -1] if p.dim() == 5 else p for p in (parameter, parameter.grad))
                average = self.state[parameter].setdefault("momentum", torch.zeros_like(weight))
                average.lerp_(gradient, 1 - group["momentum"])
                update = gradient.lerp(average, group["momentum"]).flatten(1)
                shapes.setdefault(update.shape, []).append((weight, update))
            for (rows, columns), pairs in shapes.items():
                updates = _orthogonal(torch.stack([update for _, update in pairs]))
                scale = max(1, rows / columns) ** 0.5
                for (weight, _), update in zip(pairs, updates, strict=True):
                    weight.add_(update.view_as(weight), alpha=-group["lr"] * scale)


def _orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly, of (n, rows, columns): a quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Average:
    """A moving average of a module's weights, over about the last tenth of the steps, at most 2,000."""

    def __init__(self, module: nn.Module) -> None:
        self.weights = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = 1 - 1 / min(2000, 10 + step / 10)
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - decay)


def learning_rate(step: int, total: int, *, level: float, warmup: int = 100) -> float:
    """The share of the peak learning rate at a step: a short warm-up, ``level`` of all steps level, linear to zero."""
    return min(1.0, (step + 1) / warmup, (1 - step / total) / (1 - level) + 1e-3)


def save(file: Path, **state: Any) -> None:
    """Write a checkpoint whole or not at all, so that a killed training can go on."""
    partial = file.with_suffix(".part")
    torch.save(state, partial)
    os.replace(partial, file)


def load(file: Path) -> dict[str, Any] | None:
    """Read a checkpoint, or ``None`` where there is none."""
    if not file.exists():
        return None
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state
