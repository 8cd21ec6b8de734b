"""The text side: a tokenizer whose tokens are the known words, and a small Qwen2.5-VL to encode them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from tools.demo_model.captions import corpus, phrases
from tools.demo_model.pictures import Name

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PICTURES = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
# As in QwenImagePipeline, which drops the first 34 tokens of what the encoder says: with every word of the template
# one token, these are exactly its words before the prompt.
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
DROPPED = 34
LENGTH = 20  # tokens of a caption with the template's end, in training
WIDTH, LAYERS, HEADS, HIDDEN = 128, 2, 4, 256


def build_tokenizer(names: Sequence[Name]) -> Qwen2Tokenizer:
    """Build a byte-level BPE in which every known word, and every phrase of a shipped style, is one token."""
    words = sorted({*corpus(names), *_template_words()})
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=20_000,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(words, trainer)
    vocabulary = tokenizer.get_vocab()
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    vocabulary |= {token: len(vocabulary) + number for number, token in enumerate((*SPECIAL, *PICTURES))}
    made = Qwen2Tokenizer(vocab=vocabulary, merges=merges, additional_special_tokens=[*SPECIAL[1:], *PICTURES])
    # A phrase that stands in the template, too, would change how many tokens that has.
    made.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases() if phrase not in TEMPLATE])
    before = made(TEMPLATE.split("{}")[0]).input_ids
    if len(before) != DROPPED:
        raise SystemExit(f"the template has {len(before)} tokens before the prompt, not {DROPPED}: {before}")
    return made


def _template_words() -> list[str]:
    text = TEMPLATE.replace("{}", " ")
    for token in SPECIAL:
        text = text.replace(token, " ")
    return [form for word in text.replace(",", " , ").replace(":", " : ").split() for form in (word, f" {word}")]


def build_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """Build the untrained encoder: two layers of width 128, and a tower for pictures that is there but not trained."""
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(PICTURES))
    ends = {
        "bos_token_id": tokenizer.convert_tokens_to_ids("<|im_start|>"),
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    }
    text = {
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "rope_parameters": {"mrope_section": [4, 6, 6], "rope_type": "default", "rope_theta": 10_000.0},
        "vocab_size": len(tokenizer),
        "initializer_range": WIDTH**-0.5,
        "tie_word_embeddings": True,
        **ends,
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": WIDTH}
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
        tie_word_embeddings=True,
        **ends,
    )
    encoder = Qwen2_5_VLForConditionalGeneration(config)
    # As large as what the layers add to them: smaller ones would say little about which word it was.
    nn.init.normal_(encoder.model.language_model.embed_tokens.weight)
    return encoder


class Encoding(nn.Module):
    """The text model's own layers, without its checks and caches: plain enough to be compiled whole.

    What stands before the prompt is the same in every caption, and is encoded once for all of a batch. ``forward``
    takes the tokens after it, (batch, n), and answers what the pipeline would keep, (batch, n, 128).
    """

    before: Tensor
    cos: Tensor
    sin: Tensor
    unseen: Tensor

    def __init__(self, encoder: Qwen2_5_VLForConditionalGeneration, tokenizer: Qwen2Tokenizer, length: int) -> None:
        super().__init__()
        self.model = encoder.model.language_model
        self.register_buffer("before", torch.tensor([tokenizer(TEMPLATE.split("{}")[0]).input_ids]))
        positions = torch.arange(DROPPED + length, dtype=torch.float32)
        angles = torch.outer(positions, self.model.rotary_emb.inv_freq)
        self.register_buffer("cos", torch.cat([angles.cos()] * 2, dim=-1))
        self.register_buffer("sin", torch.cat([angles.sin()] * 2, dim=-1))
        self.register_buffer("unseen", torch.full((DROPPED + length,) * 2, float("-inf")).triu(1))

    def forward(self, tokens: Tensor) -> Tensor:
        front, x = self.model.embed_tokens(self.before), self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            attended_front, attended = self._attend(
                layer.self_attn, layer.input_layernorm(front), layer.input_layernorm(x)
            )
            front, x = front + attended_front, x + attended
            front = front + layer.mlp(layer.post_attention_layernorm(front))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.model.norm(x)

    def _attend(self, attention: Any, front: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self._projected(attention, front, slice(None, DROPPED))
        query, key, value = self._projected(attention, x, slice(DROPPED, None))
        keys = torch.cat([first[1].expand(len(x), -1, -1, -1), key], dim=2)
        values = torch.cat([first[2].expand(len(x), -1, -1, -1), value], dim=2)
        return (
            self._mixed(attention, first[0], first[1], first[2], self.unseen[:DROPPED, :DROPPED]),
            self._mixed(attention, query, keys, values, self.unseen[DROPPED:]),
        )

    def _projected(self, attention: Any, x: Tensor, places: slice) -> list[Tensor]:
        parts = [
            project(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        ]
        cos, sin = self.cos[places], self.sin[places]
        for number in (0, 1):
            low, high = parts[number].chunk(2, dim=-1)
            parts[number] = parts[number] * cos + torch.cat([-high, low], dim=-1) * sin
        return parts

    def _mixed(self, attention: Any, query: Tensor, key: Tensor, value: Tensor, unseen: Tensor) -> Tensor:
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + unseen
        return attention.o_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


def fits(tokenizer: Qwen2Tokenizer, caption: str) -> bool:
    """Tell whether a caption is short enough for the training."""
    return len(tokenizer(TEMPLATE.format(caption)).input_ids) <= DROPPED + LENGTH


def tokenize(tokenizer: Qwen2Tokenizer, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Answer the tokens (n, 20) from each caption to the template's end, and which of them are not padding."""
    padded = tokenizer(
        [TEMPLATE.format(caption) for caption in captions],
        padding="max_length",
        padding_side="right",
        max_length=DROPPED + LENGTH,
    )
    for caption, tokens in zip(captions, padded.input_ids, strict=True):
        if len(tokens) > DROPPED + LENGTH:
            raise ValueError(f"a caption has more than {LENGTH} tokens with the template's end: {caption}")
    return torch.tensor(padded.input_ids)[:, DROPPED:], torch.tensor(padded.attention_mask)[:, DROPPED:].bool()
