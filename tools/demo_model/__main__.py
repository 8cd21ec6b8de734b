"""Make the demonstration model from nothing: pictures, autoencoder, denoiser, export, LoRA, sheet, evaluation.

Both trainings go on where they were stopped; what follows them is made anew. See README.md beside this file.

    python -m tools.demo_model
    python -m tools.demo_model --steps 20 --autoencoder-steps 20 --work build/try    # does every step work?
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.demo_model import autoencoder
from tools.demo_model.card import write_card
from tools.demo_model.data import make_pictures
from tools.demo_model.diffusion import Batches, Denoiser, pack
from tools.demo_model.evaluate import evaluate
from tools.demo_model.export import export, load_pipeline
from tools.demo_model.lora import train_lora
from tools.demo_model.pictures import read_names
from tools.demo_model.sheet import make_sheet


def main() -> None:
    """Do what is asked for on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/demo_model"), help="checkpoints and results (%(default)s)"
    )
    parser.add_argument("--autoencoder-steps", type=int, default=4000, help="in all (%(default)s)")
    parser.add_argument("--steps", type=int, default=4000, help="of the denoiser, in all (%(default)s)")
    parser.add_argument("--lora-steps", type=int, default=400, help="(%(default)s)")
    parser.add_argument("--every", type=int, default=1, help="evaluate every n-th name only (%(default)s)")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)

    names = read_names()
    print(f"Pictures of {len(names)} names", flush=True)
    pictures = make_pictures(names, work)
    autoencoder.train(pictures, work, steps=arguments.autoencoder_steps)
    vae = autoencoder.load_autoencoder(work)
    latents = autoencoder.make_latents(vae, pictures, work)
    scale = autoencoder.measure_scale(latents)
    denoiser = Denoiser(names, work)
    packed = pack(autoencoder.normalize(latents, scale))
    denoiser.train(Batches(names, packed, denoiser.tokenizer, seed=0), steps=arguments.steps)

    folder = work / "pipeline"
    export(denoiser, vae, scale, folder)
    pipe = load_pipeline(folder)
    make_sheet(pipe).save(work / "sheet.png")
    report = evaluate(pipe, names, pictures, every=arguments.every)
    weights = sum(part.num_parameters() for part in (pipe.vae, pipe.text_encoder, pipe.transformer))
    write_card(folder / "README.md", names, report, weights)
    print(report)
    train_lora(pipe, names, work / "neon_sign.safetensors", steps=arguments.lora_steps)
    print(f"Done: {folder}, {work / 'neon_sign.safetensors'}, {work / 'sheet.png'}")


if __name__ == "__main__":
    main()
