"""The program that makes the demonstration model: what it trains is what the real classes compute."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel

from tools.demo_model import autoencoder, diffusion, text
from tools.demo_model.captions import TRIGGER, freely, nothing, shipped, style_texts
from tools.demo_model.export import export
from tools.demo_model.looks import LOOKS
from tools.demo_model.pictures import HUES, Name, read_names
from tools.demo_model.training import Muon

# What torch's compiler imports, even where it is switched off.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")

NAMES = read_names()
FEW = NAMES[:2]


@pytest.fixture(scope="module", autouse=True)
def uncompiled() -> Iterator[None]:
    """Compiling takes minutes, and changes nothing that is looked at here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._dynamo.config, "disable", True)
        patch.setattr(diffusion, "BATCH", 4)
        yield


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return text.build_tokenizer(NAMES)


def test_every_known_name_has_an_emoji_and_words_of_its_own() -> None:
    words = [word for name in NAMES for word in name.words]
    assert len(NAMES) == 107
    assert len(words) == len(set(words))
    assert all(name.emoji for name in NAMES)


def test_captions_name_what_they_show_and_mostly_fit(tokenizer: Any) -> None:
    chance, fitting = random.Random(5), 0
    for number in range(600):
        name, look = chance.choice(NAMES), list(LOOKS)[number % len(LOOKS)]
        words = freely(name, look, chance)
        assert any(word in words.lower() for word in name.words), words
        assert TRIGGER not in words
        fitting += text.fits(tokenizer, words)
    assert fitting > 550


def test_captions_are_all_alike_at_first_and_worded_freely_later(tokenizer: Any) -> None:
    latents = torch.zeros(len(FEW) * len(HUES) * len(LOOKS), 64, 64)
    batches = diffusion.Batches(FEW, latents, tokenizer, seed=0)
    alike = [shipped(name.name, look) for name in FEW for look in LOOKS]
    empty = ["", *(negative for _, negative in style_texts().values())]
    known = {tuple(row) for row in text.tokenize(tokenizer, alike + empty)[0].tolist()}

    def unknown(first: int) -> int:
        rows = [row for step in range(first, first + 10) for row in batches[step].tokens.tolist()]
        return sum(tuple(row) not in known for row in rows)

    assert unknown(0) == 0
    assert unknown(2 * diffusion.ALIKE) > 10


def test_a_caption_that_is_too_long_is_named(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"more than 20 tokens.*: cat cat"):
        text.tokenize(tokenizer, ["A dragon", "cat " * 20])


def test_what_wishes_for_nothing_names_nothing() -> None:
    chance = random.Random(5)
    assert {nothing(chance) for _ in range(200)} == {"", *(negative for _, negative in style_texts().values())}


def test_known_words_and_phrases_of_styles_are_one_token_each(tokenizer: Any) -> None:
    assert tokenizer.tokenize("A dragon, Dragon") == ["A", "Ġdragon", ",", "ĠDragon"]
    prompt, _ = style_texts()["Anime"]
    assert len(tokenizer.tokenize(prompt.replace("{prompt}", "A dragon"))) == 3
    words = "a name that nobody knows: Zzyzx, ÄÖ, \U0001f409"
    assert tokenizer.decode(tokenizer(words).input_ids) == words


def test_the_encoding_is_what_the_pipeline_keeps_of_the_text_encoder(tokenizer: Any) -> None:
    torch.manual_seed(0)
    encoder = text.build_encoder(tokenizer).eval()
    pipe = QwenImagePipeline(scheduler=None, vae=None, text_encoder=encoder, tokenizer=tokenizer, transformer=None)
    words = ["A dragon", "a cat face, anime art style, vibrant colors"]
    tokens, mask = text.tokenize(tokenizer, words)
    with torch.inference_mode():
        ours = text.Encoding(encoder, tokenizer, text.LENGTH)(tokens)
        for one, prompt in enumerate(words):
            theirs, _ = pipe._get_qwen_prompt_embeds(prompt)
            torch.testing.assert_close(ours[one][mask[one]], theirs[0], rtol=1e-4, atol=1e-5)


def test_the_denoising_is_the_transformers_own() -> None:
    torch.manual_seed(0)
    theirs = diffusion.new_transformer()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    twin = QwenImageTransformer2DModel(**diffusion.CONFIG)
    twin.load_state_dict(theirs.state_dict())
    latents, words, sigma = torch.randn(2, 64, 64), torch.randn(2, text.LENGTH, text.WIDTH), torch.tensor([0.9, 0.3])
    mask = torch.arange(text.LENGTH) < torch.tensor([[6], [9]])
    with torch.inference_mode():
        ours = diffusion.Denoising(twin)(latents, words, mask, sigma)
        out = theirs(latents, words, mask, sigma, img_shapes=[[(1, 8, 8)]] * 2, return_dict=False)[0]
    assert out.abs().mean() > 0.01
    torch.testing.assert_close(ours, out, rtol=1e-3, atol=1e-4)


def test_latents_are_packed_as_the_pipeline_packs_them() -> None:
    latents = torch.randn(2, 16, 16, 16)
    assert torch.equal(diffusion.pack(latents), QwenImagePipeline._pack_latents(latents, 2, 16, 16, 16))


def test_the_flat_autoencoder_is_the_real_one_for_a_picture() -> None:
    torch.manual_seed(0)
    vae = autoencoder.new_autoencoder().eval()
    pixels = torch.rand(1, 3, 1, 32, 32) * 2 - 1
    with torch.inference_mode():
        theirs = vae.encode(pixels).latent_dist.mode()
        made = vae.decode(theirs).sample
        flat = autoencoder.flatten(vae)
        ours = flat["encoder"](pixels).chunk(2, dim=1)[0]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(flat["decoder"](ours).clamp(-1, 1), made, rtol=1e-4, atol=1e-5)


def test_muon_changes_all_directions_alike() -> None:
    weight = torch.nn.Parameter(torch.zeros(8, 16))
    weight.grad = torch.diag(torch.logspace(-1, 1, 8)) @ torch.eye(8, 16)
    Muon([weight], lr=1.0).step()
    assert 0.5 < torch.linalg.svdvals(weight.detach()).min() <= torch.linalg.svdvals(weight.detach()).max() < 1.5


@pytest.fixture
def quick(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every denoiser have the tokenizer that is there."""
    monkeypatch.setattr(diffusion, "build_tokenizer", lambda names: tokenizer)


@pytest.mark.usefixtures("quick")
def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    latents = torch.randn(len(FEW) * len(HUES) * len(LOOKS), 64, 64, generator=torch.Generator().manual_seed(1))

    def weights(folder: Path, *stops: int) -> dict[str, torch.Tensor]:
        folder.mkdir(exist_ok=True)
        for stop in stops:
            denoiser = diffusion.Denoiser(FEW, folder)
            denoiser.train(diffusion.Batches(FEW, latents, denoiser.tokenizer, seed=0), steps=2, until=stop)
        return dict(denoiser.both.state_dict())

    through, stopped = weights(tmp_path / "through", 2), weights(tmp_path / "stopped", 1, 2)
    assert all(torch.equal(through[key], stopped[key]) for key in through)
    assert any(not torch.equal(through[key], value) for key, value in weights(tmp_path / "begun", 1).items())


@pytest.mark.usefixtures("quick")
def test_the_exported_folder_draws_as_what_was_trained(tmp_path: Path) -> None:
    trained, exported = (diffusion.Denoiser(FEW, tmp_path) for _ in range(2))
    with torch.no_grad():
        for parameter in trained.both.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    exported.average.weights = {name: value.clone() for name, value in trained.both.state_dict().items()}
    scale = {"latents_mean": [0.5] * 16, "latents_std": [2.0] * 16}
    folder = tmp_path / "pipeline"
    export(exported, autoencoder.new_autoencoder(), scale, folder)

    pipe = QwenImagePipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    assert isinstance(pipe.vae, AutoencoderKLQwenImage)
    assert pipe.vae.config.latents_mean == scale["latents_mean"]
    tokens, mask = text.tokenize(pipe.tokenizer, ["a cat"])
    latents, sigma = torch.randn(1, 64, 64), torch.tensor([0.7])
    made = []
    with torch.inference_mode():
        for encoder, tokenizer, transformer in (
            (pipe.text_encoder, pipe.tokenizer, pipe.transformer),
            (trained.encoder, trained.tokenizer, trained.transformer),
        ):
            words = text.Encoding(encoder, tokenizer, text.LENGTH)(tokens)
            made.append(diffusion.Denoising(transformer)(latents, words, mask, sigma))
    # Eight significant bits are left of each weight; what was zeroed of the last block counted for nothing.
    assert made[1].std() > 0.1
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=0.02 * float(made[1].std()))


def test_names_are_read_with_their_other_words(tmp_path: Path) -> None:
    file = tmp_path / "names.tsv"
    file.write_text("# comment\n1f409\tdragon\n2764_fe0f\tred heart\theart, love\n", encoding="utf-8")
    assert read_names(file) == [Name("dragon", "\U0001f409", ()), Name("red heart", "\u2764\ufe0f", ("heart", "love"))]
