"""LoRAs beside a model: added to its layers for one run, and gone after it.

A LoRA (low-rank adaptation, Hu et al. 2021) makes a linear layer's ``Wx`` into ``Wx + weight * B(Ax)``. Here forward
hooks add the second term. Neither weights nor modules are touched, so whatever ends a run, taking the hooks away leaves
the model as it was, to the bit. The sum is PEFT's, in the same order; but PEFT puts a module of its own around each of
Qwen-Image's 840 layers, which takes seconds for every LoRA, and hooks take milliseconds.
"""

from __future__ import annotations

import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImagePipeline
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn.functional import linear

from tenkaigen_worker.errors import Code, EngineError, FieldProblem, InputError
from tenkaigen_worker.recipe import AppliedLora

log = logging.getLogger("tenkaigen.engine")

SHOWN = 3  # of the wrong names in one message

# What diffusers' conversion leaves of every format that it knows, and what needs none.
_KEY = re.compile(r"(?:transformer\.)?(?P<target>.+)\.lora_(?P<part>[AB])\.weight")
_PREFIXES = ("transformer.", "diffusion_model.", "lora_unet_")
_DORA = "dora_scale"  # diffusers would leave it out with nothing but a warning


@dataclass(frozen=True, slots=True)
class LowRank:
    """What a LoRA adds to one layer: ``down`` (A) is rank x in, ``up`` (B) is out x rank, with its alpha."""

    down: torch.Tensor
    up: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes

    def hook(self, weight: float) -> Callable[..., torch.Tensor]:
        """Make the forward hook that adds this to a layer's output."""

        def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            return output + linear(linear(inputs[0].to(self.down), self.down), self.up) * weight

        return add


Layers = Mapping[str, LowRank]


class Adapters:
    """Applies LoRAs to one transformer, and keeps those used last on its device, up to ``keep_bytes``."""

    def __init__(self, transformer: torch.nn.Module, device: torch.device, dtype: torch.dtype, keep_bytes: int) -> None:
        self._targets = {name: module for name, module in transformer.named_modules() if _is_linear(module)}
        self._device = device
        self._dtype = dtype
        self._keep_bytes = keep_bytes
        self._kept: OrderedDict[str, Layers] = OrderedDict()

    @contextmanager
    def applied(self, loras: Sequence[AppliedLora], files: Mapping[str, Path]) -> Iterator[int]:
        """Apply exactly these LoRAs for as long as the context lasts, and yield the milliseconds that it took.

        ``files`` finds them by SHA-256. A weight of 0 is the model without the LoRA, to the bit. Raises ``InputError``
        for a file that is no LoRA of this model, and ``EngineError`` for one that is not there.
        """
        started = time.monotonic()
        with ExitStack() as hooks:
            for lora in loras:
                if lora.weight == 0:
                    continue
                for target, low_rank in self._get(lora, files).items():
                    handle = self._targets[target].register_forward_hook(low_rank.hook(lora.weight))
                    hooks.callback(handle.remove)
            taken = round((time.monotonic() - started) * 1000)
            if loras:
                names = ", ".join(f"{lora.name} at {lora.weight:g}" for lora in loras)
                log.info("LoRAs applied in %d ms: %s", taken, names, extra={"action": "lora_applied", "ms": taken})
            yield taken

    def forget(self) -> None:
        """Give back the memory of all that is kept."""
        self._kept.clear()

    def _get(self, lora: AppliedLora, files: Mapping[str, Path]) -> Layers:
        layers = self._kept.pop(lora.sha256, None)
        if layers is None:
            layers = {
                target: LowRank(*(part.to(self._device, self._dtype) for part in (low_rank.down, low_rank.up)))
                for target, low_rank in read_lora(lora, files.get(lora.sha256), self._targets).items()
            }
        if _nbytes(layers) <= self._keep_bytes:
            self._kept[lora.sha256] = layers
        while sum(map(_nbytes, self._kept.values())) > self._keep_bytes:
            self._kept.popitem(last=False)
        return layers


def read_lora(lora: AppliedLora, file: Path | None, targets: Mapping[str, torch.nn.Module]) -> dict[str, LowRank]:
    """Read a LoRA's file and check that every part of it has its layer in the model, with the right shape.

    Understood are the formats of diffusers (``lora_A`` and ``lora_B``, with or without ``transformer.``), of kohya
    (``lora_down``, ``lora_up`` and ``alpha``, also as ``lora_unet_...``) and of ComfyUI (``diffusion_model.``).
    """
    tensors = _normalised(lora, _load(lora, file))
    parts: dict[str, dict[str, torch.Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        if found := _KEY.fullmatch(key):
            parts.setdefault(found["target"], {})[found["part"]] = tensor
        else:
            unknown.append(key)
    if unknown or not parts:
        raise _problem(lora, f"is in a format that is not known: it has {_some(unknown) or 'nothing in it'}")

    if strangers := [target for target in parts if target not in targets]:
        raise _problem(lora, f"was made for another model: there is no {_some(strangers)} in this one")
    if halves := [target for target, pair in parts.items() if len(pair) < 2]:
        raise _problem(lora, f"is incomplete: lora_A or lora_B is missing for {_some(halves)}")
    if misfits := [text for target, pair in parts.items() if (text := _misfit(target, pair, targets[target]))]:
        raise _problem(lora, f"was made for another model: {_some(misfits, '; ')}")
    return {target: LowRank(down=pair["A"], up=pair["B"]) for target, pair in parts.items()}


def _load(lora: AppliedLora, file: Path | None) -> dict[str, torch.Tensor]:
    if file is None:
        raise EngineError(Code.ENGINE_FAILED, f"the LoRA {lora.name} came without its file")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise _problem(lora, f"is no safetensors file, or cut short ({error})") from error
    except OSError as error:
        raise EngineError(Code.ENGINE_FAILED, f"the file of the LoRA {lora.name} cannot be read: {error}") from error


def _normalised(lora: AppliedLora, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Turn the keys of all known formats into one, with ``alpha / rank`` multiplied into A."""
    if dora := [key for key in tensors if _DORA in key]:
        raise _problem(lora, f"is a DoRA, which cannot be used: it has {_some(dora)}")
    if integers := [f"{key} ({tensor.dtype})" for key, tensor in tensors.items() if not tensor.is_floating_point()]:
        raise _problem(lora, f"holds something else than floating-point numbers: {_some(integers)}")
    if not any(key.startswith(_PREFIXES) for key in tensors):
        # Without a prefix or an alpha diffusers would not look closer.
        tensors = {f"diffusion_model.{key}": tensor for key, tensor in tensors.items()}
    try:
        converted: dict[str, torch.Tensor] = QwenImagePipeline.lora_state_dict(tensors)
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise _problem(lora, f"is in a format that is not known ({' '.join(str(error).split())[:300]})") from error
    return converted


def _misfit(target: str, pair: Mapping[str, torch.Tensor], layer: Any) -> str | None:
    """Say how a target's shapes differ from its layer's."""
    down, up = tuple(pair["A"].shape), tuple(pair["B"].shape)
    if (
        len(down) == len(up) == 2
        and down[0] == up[1] > 0
        and (down[1], up[0]) == (layer.in_features, layer.out_features)
    ):
        return None
    text = f"{target} has {layer.in_features} inputs and {layer.out_features} outputs"
    return f"{text}, and the LoRA's parts are {_shape(down)} and {_shape(up)}"


def _is_linear(module: Any) -> bool:
    # Quantised layers hold their weights in other shapes, but still say what goes in and out.
    return isinstance(module, torch.nn.Linear) or (hasattr(module, "in_features") and hasattr(module, "out_features"))


def _nbytes(layers: Layers) -> int:
    return sum(low_rank.nbytes for low_rank in layers.values())


def _some(names: Sequence[str], separator: str = ", ") -> str:
    rest = len(names) - SHOWN
    return separator.join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _problem(lora: AppliedLora, text: str) -> InputError:
    return InputError.of([FieldProblem("loras", f"{lora.name} {text}")])
