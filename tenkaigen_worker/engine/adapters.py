"""LoRAs beside a model: added to its layers for one run, and gone after it.

A LoRA (low-rank adaptation, Hu et al. 2021) makes a linear layer's ``Wx`` into ``Wx + weight * B(Ax)``. Here forward
hooks add the second term. Neither weights nor modules are touched, so whatever ends a run, taking the hooks away leaves
the model as it was, to the bit. The sum is PEFT's, in the same order; but PEFT puts a module of its own around each of
Qwen-Image's 840 layers, which takes seconds for every LoRA, and hooks take milliseconds. Layers of 4 bits have a
low-rank branch of their own, and a LoRA is appended there (:mod:`.branches`) until their own parameters are put back.
"""

from __future__ import annotations

import logging
import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from diffusers import QwenImagePipeline
from safetensors import SafetensorError
from safetensors.torch import load_file

from tenkaigen_worker.engine.branches import MAX_RANK, Addition, Fragments, appended
from tenkaigen_worker.engine.layers import CLOSED, Layer, LowRank, find_layers
from tenkaigen_worker.errors import Code, EngineError, FieldProblem, InputError
from tenkaigen_worker.recipe import AppliedLora

log = logging.getLogger("tenkaigen.engine")

SHOWN = 3  # of the wrong names in one message

# What diffusers' conversion leaves of every format that it knows, and what needs none.
_KEY = re.compile(r"(?:transformer\.)?(?P<target>.+)\.lora_(?P<part>[AB])\.weight")
_PREFIXES = ("transformer.", "diffusion_model.", "lora_unet_")
_DORA = "dora_scale"  # diffusers would leave it out with nothing but a warning


Kept = Mapping[str, LowRank | Fragments]


class Adapters:
    """Applies LoRAs to one transformer, and keeps those used last on its device, up to ``keep_bytes``."""

    def __init__(self, transformer: torch.nn.Module, device: torch.device, dtype: torch.dtype, keep_bytes: int) -> None:
        self._transformer = transformer
        self._device = device
        self._dtype = dtype
        self._keep_bytes = keep_bytes
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    @contextmanager
    def applied(self, loras: Sequence[AppliedLora], files: Mapping[str, Path]) -> Iterator[int]:
        """Apply exactly these LoRAs for as long as the context lasts, and yield the milliseconds that it took.

        ``files`` finds them by SHA-256. A weight of 0 is the model without the LoRA, to the bit. Raises ``InputError``
        for a file that is no LoRA of this model, and ``EngineError`` for one that is not there.
        """
        started = time.monotonic()
        with ExitStack() as undo:
            if wanted := [lora for lora in loras if lora.weight != 0]:
                self._apply(wanted, files, undo)
            taken = round((time.monotonic() - started) * 1000)
            if loras:
                names = ", ".join(f"{lora.name} at {lora.weight:g}" for lora in loras)
                log.info("LoRAs applied in %d ms: %s", taken, names, extra={"action": "lora_applied", "ms": taken})
            yield taken

    def _apply(self, loras: Sequence[AppliedLora], files: Mapping[str, Path], undo: ExitStack) -> None:
        # Found anew each time: whether blocks wait in main memory can change, and looking takes milliseconds.
        layers = find_layers(self._transformer)
        additions: dict[str, list[Addition]] = {}
        for lora in loras:
            for target, kept in self._get(lora, files, layers).items():
                layer = layers[target]
                if isinstance(kept, Fragments):
                    additions.setdefault(layer.name, []).append(Addition(kept, lora.weight))
                else:
                    undo.callback(layer.module.register_forward_hook(kept.hook(lora.weight)).remove)

        modules = {layer.name: layer.module for layer in layers.values()}
        for name, more in additions.items():
            rank = modules[name].proj_down.shape[1] + sum(addition.fragments.rank for addition in more)
            if rank > MAX_RANK:
                raise _too_much(loras, f"{name} would have rank {rank}, and at most {MAX_RANK} is possible")
        for name, more in additions.items():
            undo.enter_context(appended(modules[name], more))

    def forget(self) -> None:
        """Give back the memory of all that is kept."""
        self._kept.clear()

    def _get(self, lora: AppliedLora, files: Mapping[str, Path], layers: Mapping[str, Layer]) -> Kept:
        kept = self._kept.pop(lora.sha256, None)
        if kept is None:
            kept = {
                target: layers[target].keep(low_rank, self._device, self._dtype)
                for target, low_rank in read_lora(lora, files.get(lora.sha256), layers).items()
            }
        else:
            _check_open(lora, kept, layers)
        if _nbytes(kept) <= self._keep_bytes:
            self._kept[lora.sha256] = kept
        while sum(map(_nbytes, self._kept.values())) > self._keep_bytes:
            self._kept.popitem(last=False)
        return kept


def read_lora(lora: AppliedLora, file: Path | None, targets: Mapping[str, Layer]) -> dict[str, LowRank]:
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
    _check_open(lora, parts, targets)
    return {target: LowRank(down=pair["A"], up=pair["B"]) for target, pair in parts.items()}


def _check_open(lora: AppliedLora, targets: Iterable[str], layers: Mapping[str, Layer]) -> None:
    """Refuse a LoRA when not every layer that it names can take it: the rest alone would be another LoRA."""
    for way in CLOSED:
        if closed := [target for target in targets if layers[target].way is way]:
            raise _problem(lora, f"cannot be applied to this model: each of these {way.value}: {_some(closed)}")


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


def _misfit(target: str, pair: Mapping[str, torch.Tensor], layer: Layer) -> str | None:
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


def _nbytes(kept: Kept) -> int:
    return sum(parts.nbytes for parts in kept.values())


def _some(names: Sequence[str], separator: str = ", ") -> str:
    rest = len(names) - SHOWN
    return separator.join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _problem(lora: AppliedLora, text: str) -> InputError:
    return InputError.of([FieldProblem("loras", f"{lora.name} {text}")])


def _too_much(loras: Sequence[AppliedLora], text: str) -> InputError:
    names = ", ".join(lora.name for lora in loras)
    return InputError.of([FieldProblem("loras", f"{names} cannot be applied together: {text}")])
