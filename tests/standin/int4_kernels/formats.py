"""How Nunchaku's checkpoints lay out their tensors in memory: the order of elements inside each tile.

Facts of the published format, written down as "which place does element (row, column) take". A lane is one of a warp's
32 threads; each loads its own elements in one access, and that is why the order is not row by row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FRAGMENT = 16
TILE_ROWS, TILE_COLUMNS = 128, 64

Place = Callable[[Tensor, Tensor], Tensor]


def _order(rows: int, columns: int, place: Place) -> Tensor:
    """At each place of a tile, the row-by-row number of the element that stands there."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.argsort(place(row, column).flatten())


def _fragment_place(row: Tensor, column: Tensor) -> Tensor:
    lane = row % 8 * 4 + column % 8 // 2
    return lane * 8 + row // 8 * 4 + column // 8 * 2 + column % 2


def _code_place(row: Tensor, column: Tensor) -> Tensor:
    lane = row % 8 * 4 + column % 32 // 8
    return ((row // 16 * 32 + lane) * 4 + row // 8 % 2 * 2 + column // 32) * 8 + column % 8


def _scale_place(row: Tensor, column: Tensor) -> Tensor:
    return row // 16 * 16 + row % 8 // 2 * 4 + row // 8 % 2 * 2 + row % 2


FRAGMENT_ORDER = _order(FRAGMENT, FRAGMENT, _fragment_place)
CODE_ORDER = _order(TILE_ROWS, TILE_COLUMNS, _code_place)
SCALE_ORDER = _order(TILE_ROWS, 1, _scale_place)


def _tiles(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """Cut an N x K matrix into tiles, one flat tile each: N / rows, K / columns, rows * columns."""
    n, k = matrix.shape
    return matrix.reshape(n // rows, rows, k // columns, columns).transpose(1, 2).reshape(n // rows, k // columns, -1)


def _untiled(tiles: Tensor, rows: int, columns: int) -> Tensor:
    down, across, _ = tiles.shape
    return tiles.reshape(down, across, rows, columns).transpose(1, 2).reshape(down * rows, across * columns)


def pack_lowrank(weight: Tensor, down: bool) -> Tensor:
    """Pack one half of a low-rank branch, padded with zeros to multiples of 16.

    ``down`` is rank x in and becomes in x rank; otherwise out x rank stays so. Both lie channel fragment by channel
    fragment, and inside each rank fragment by rank fragment. float16 or bfloat16 only.
    """
    _must_be_half(weight)
    n, k = weight.shape
    weight = torch.nn.functional.pad(weight, (0, -k % FRAGMENT, 0, -n % FRAGMENT))
    tiles = _tiles(weight, FRAGMENT, FRAGMENT)[..., FRAGMENT_ORDER.to(weight.device)]
    if down:
        tiles = tiles.transpose(0, 1)
    return tiles.reshape(tiles.shape[0] * FRAGMENT, tiles.shape[1] * FRAGMENT)


def unpack_lowrank(packed: Tensor, down: bool) -> Tensor:
    """The inverse of :func:`pack_lowrank`; the padding stays."""
    _must_be_half(packed)
    channels, rank = packed.shape
    tiles = packed.reshape(channels // FRAGMENT, rank // FRAGMENT, FRAGMENT * FRAGMENT)
    tiles = tiles[..., torch.argsort(FRAGMENT_ORDER).to(packed.device)]
    if down:
        tiles = tiles.transpose(0, 1)
    return _untiled(tiles, FRAGMENT, FRAGMENT)


def pack_codes(codes: Tensor) -> Tensor:
    """Pack an N x K matrix of weight codes from -8 to 7 into int8 N x K/2; N and K are multiples of 128."""
    n, k = codes.shape
    _must_divide(n, k)
    nibbles = (_tiles(codes, TILE_ROWS, TILE_COLUMNS)[..., CODE_ORDER.to(codes.device)] & 0xF).reshape(n, k // 2, 2)
    return (nibbles[..., 0] | nibbles[..., 1] << 4).to(torch.uint8).view(torch.int8)


def unpack_codes(packed: Tensor) -> Tensor:
    """The inverse of :func:`pack_codes`: an N x K matrix of int32 from -8 to 7."""
    n, k = packed.shape[0], packed.shape[1] * 2
    _must_divide(n, k)
    tiles = signed(nibbles_of(packed)).reshape(n // TILE_ROWS, k // TILE_COLUMNS, -1)
    return _untiled(tiles[..., torch.argsort(CODE_ORDER).to(packed.device)], TILE_ROWS, TILE_COLUMNS)


def pack_scales(scales: Tensor) -> Tensor:
    """Pack N x G scales, or N values of a bias or a smoothing factor, into G x N, or N; N is a multiple of 128."""
    n = scales.shape[0]
    _must_divide(n)
    tiles = scales.reshape(n // TILE_ROWS, TILE_ROWS, -1)[:, SCALE_ORDER.to(scales.device)].transpose(1, 2)
    return tiles.reshape(n) if scales.dim() == 1 else tiles.reshape(-1, n)


def unpack_scales(packed: Tensor) -> Tensor:
    """The inverse of :func:`pack_scales`."""
    n = packed.shape[-1]
    _must_divide(n)
    tiles = packed.reshape(n // TILE_ROWS, -1, TILE_ROWS).transpose(1, 2)
    scales = tiles[:, torch.argsort(SCALE_ORDER).to(packed.device)].reshape(n, -1)
    return scales[:, 0] if packed.dim() == 1 else scales


def pack_awq_codes(codes: Tensor) -> Tensor:
    """Pack an N x K matrix of codes from 0 to 15 into int32 N/4 x K/2: four rows interleaved every 64 columns."""
    n, k = codes.shape
    quarters = codes.to(torch.int32).reshape(n, k // 32, 4, 8)
    words = sum(quarters[:, :, nibble] << 4 * nibble for nibble in range(4))
    assert isinstance(words, Tensor)
    interleaved = words.reshape(n // 4, 4, k // 64, 16).transpose(1, 2)
    return interleaved.to(torch.int16).reshape(n // 4, k).view(torch.int32)


def unpack_awq_codes(packed: Tensor) -> Tensor:
    """The inverse of :func:`pack_awq_codes`, as int32."""
    n, k = packed.shape[0] * 4, packed.shape[1] * 2
    words = packed.contiguous().view(torch.int16).to(torch.int32).reshape(n // 4, k // 64, 4, 16).transpose(1, 2)
    words = words.reshape(n, k // 32, 1, 8)
    return (words >> torch.arange(0, 16, 4, device=packed.device).view(4, 1) & 0xF).reshape(n, k)


def pack_nibbles(codes: Tensor) -> Tensor:
    """Two codes to a byte, the first in the low half. The kernels' own order of activations is never seen outside."""
    pairs = (codes & 0xF).reshape(*codes.shape[:-1], -1, 2)
    return (pairs[..., 0] | pairs[..., 1] << 4).to(torch.uint8)


def nibbles_of(packed: Tensor) -> Tensor:
    """The codes of :func:`pack_nibbles`, from 0 to 15, as int32."""
    wide = packed.view(torch.uint8).to(torch.int32)
    return torch.stack([wide & 0xF, wide >> 4], dim=-1).flatten(-2)


def signed(nibbles: Tensor) -> Tensor:
    """Read four bits as two's complement: 0 to 15 become -8 to 7."""
    return (nibbles ^ 8) - 8


def _must_be_half(weight: Tensor) -> None:
    if weight.dtype not in (torch.float16, torch.bfloat16):
        raise AssertionError(f"Unsupported weight dtype {weight.dtype}.")


def _must_divide(*sizes: int) -> None:
    if any(size % TILE_ROWS for size in sizes):
        raise ValueError(f"the kernels take multiples of {TILE_ROWS}, not {' x '.join(map(str, sizes))}")
