"""Encoding prompts, and remembering what came out: shops ask for the same words again and again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch

from tenkaigen_worker.engine.edit import Edit

MAX_PROMPT_TOKENS = 1024  # what the pipeline allows at most; its default of 512 cuts longer prompts in silence


@dataclass(frozen=True, slots=True)
class Embedding:
    """An encoded prompt: ``embeds`` is 1 x tokens x width, ``mask`` is ``None`` where no token is padding."""

    embeds: torch.Tensor
    mask: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        return self.embeds.nbytes + (0 if self.mask is None else self.mask.nbytes)

    def to(self, device: torch.device) -> Embedding:
        """The same on another device, to the bit."""
        return Embedding(self.embeds.to(device), None if self.mask is None else self.mask.to(device))


class PromptEncoder:
    """Encodes prompts with a pipeline's text encoder, and keeps up to ``cache_bytes`` of the ones used last.

    They are kept in main memory: an entry takes less than a millisecond to the GPU, whose memory is scarce. The text
    is the key, for edits with the pictures it is about: nothing else that decides the embedding can change while the
    model is loaded.
    """

    def __init__(self, pipe: Any, device: torch.device, cache_bytes: int) -> None:
        self._pipe = pipe
        self._device = device
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[tuple[str, ...], Embedding] = OrderedDict()
        self._held = 0

    def knows(self, text: str, edit: Edit | None = None) -> bool:
        """Whether this prompt needs no text encoder."""
        return _key(text, edit) in self._cache

    def encode(self, text: str, edit: Edit | None = None) -> Embedding:
        """Encode a prompt, or remember it: the result is the same, to the bit."""
        key = _key(text, edit)
        if (known := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            return known.to(self._device)

        with torch.no_grad():
            if edit is None:
                encoded = self._pipe.encode_prompt(prompt=text, max_sequence_length=MAX_PROMPT_TOKENS)
            else:
                encoded = edit.encode(text, MAX_PROMPT_TOKENS)
        embedding = Embedding(*encoded)
        self._keep(key, embedding.to(torch.device("cpu")))
        return embedding

    def _keep(self, key: tuple[str, ...], embedding: Embedding) -> None:
        if embedding.nbytes > self._cache_bytes:
            return
        self._cache[key] = embedding
        self._held += embedding.nbytes
        while self._held > self._cache_bytes:
            _, oldest = self._cache.popitem(last=False)
            self._held -= oldest.nbytes


def _key(text: str, edit: Edit | None) -> tuple[str, ...]:
    return (text, *(edit.sha256 if edit else ()))
