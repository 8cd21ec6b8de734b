"""Pictures that tests give, and such as nobody should send."""

from __future__ import annotations

import io
import zlib
from typing import Any

from PIL import Image


def gradient(width: int = 48, height: int = 32, mode: str = "RGB") -> Image.Image:
    """A picture that looks different from every side."""
    ramps = (Image.linear_gradient("L"), Image.linear_gradient("L").rotate(90), Image.radial_gradient("L"))
    return Image.merge("RGB", ramps).resize((width, height)).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def bomb(width: int, height: int) -> bytes:
    """A small PNG that becomes huge when it is decoded: one bit per pixel, all of them black."""
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + rows.flush()
    header = width.to_bytes(4) + height.to_bytes(4) + b"\x01\0\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
