"""What the parts of Qwen-Image take in memory when its transformer is in 4 bits, as numbers with their derivation.

Derived from the models' own shapes; ``tests/integration/test_footprint.py`` holds them to the full-size models, as
tensors that have a shape and no data. Nothing here was measured on a card of 24 GB: these are estimates.
"""

from __future__ import annotations

from tenkaigen_worker.engine.machine import GIB

# Published sizes in bytes: by rank, the files of nunchaku-ai/nunchaku-qwen-image; the others of Qwen/Qwen-Image.
CHECKPOINT_BYTES = {32: 11_500_000_000, 128: 12_700_000_000}
TEXT_ENCODER_BYTES = 16_600_000_000
VAE_BYTES = 254_000_000
LARGEST_SHARD_BYTES = 5_000_000_000

# The transformer: its blocks, its width, and what lies outside the blocks (40.5 M parameters in 16 bits).
BLOCKS = 60
WIDTH = 3072
BETWEEN_BLOCKS_BYTES = 81_000_000
# nunchaku copies the block that is next into one of two buffers while the other one is drawn with.
BUFFER_BLOCKS = 2

# Qwen2.5-VL-7B has 8,292 M parameters. In NF4 its linear layers take half a byte each and 4 bytes more for every 64:
#   28 layers: 2 * 3584^2 + 2 * 3584 * 512 + 3 * 3584 * 18944                    = 6,525 M
#   32 vision blocks: 4 * 1280^2 + 3 * 1280 * 3420; merger: 5120^2 + 5120 * 3584 =   675 M    * 0.5625 = 4.05 GB
# The rest stays in 16 bits: embedding and lm_head with 152064 * 3584 each       = 1,090 M    * 2      = 2.18 GB
NF4_SHARE = 6.23 / 16.58

# What one token takes at the peak of a quantised block, in multiples of 3072 numbers of 16 bits. At the rotary
# embedding there are: residual, normed and modulated (3), the fused q, k and v (3), q and k normed (2), and k anew in
# float32, turned, and in 16 bits (5). In the fused MLP 4 bits are kept of the hidden layer: it never is the peak.
WIDTHS_PER_TOKEN = 14
TOKEN_BYTES = WIDTHS_PER_TOKEN * WIDTH * 2
PROMPT_TOKENS = 1024
PIXELS_PER_TOKEN = 256

# At the VAE's last convolution, 96 channels wide, each pixel has in 16 bits: input, residual, output, and the input
# padded to three frames, which makes six times 96; the layer before it adds one more.
DECODE_BYTES_PER_PIXEL = 1350
# In tiles of 256 x 256 diffusers also keeps what earlier layers had, for frames that a picture does not have.
TILE_BYTES = 256 * 256 * 3600
# Tiles that are done, 1.8 times as many pixels because they overlap, and the picture made of them.
TILED_BYTES_PER_PIXEL = 24

# Of a prompt: 152064 logits and 29 hidden states for each token, and one layer's weights back in 16 bits.
ENCODE_BYTES = 750_000_000

# A LoRA takes so much per rank where it names every layer but the modulation: 8 * 6144 + 4 * 15360 numbers a block.
LORA_BYTES_PER_RANK = (8 * 6144 + 4 * 15360) * BLOCKS * 2
# Rank of the LoRAs that make Qwen-Image draw in 4 or 8 steps: more is not kept free.
USUAL_RANK = 64

# CUDA's context, workspaces of its libraries, and what the allocator cannot use. An estimate.
RESERVE_BYTES = GIB
# A process with torch and CUDA's libraries, and the worker beside it. An estimate.
HOST_BASE_BYTES = 3_500_000_000

# The picture that every plan leaves room for.
USUAL_PIXELS = 1024 * 1024


def drawing_bytes(pixels: int, *, tiled: bool) -> int:
    """What a picture needs besides the weights: the most of encoding, drawing and decoding.

    Guidance does not double it: the two forwards of a step run one after the other.
    """
    decoding = pixels * DECODE_BYTES_PER_PIXEL
    if tiled:
        decoding = min(decoding, TILE_BYTES + pixels * TILED_BYTES_PER_PIXEL)
    return max(ENCODE_BYTES, denoising_bytes(pixels), decoding)


def denoising_bytes(pixels: int) -> int:
    """What the transformer needs for each picture of a batch."""
    return (pixels // PIXELS_PER_TOKEN + PROMPT_TOKENS) * TOKEN_BYTES
