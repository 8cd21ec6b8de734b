"""Pictures as files: PNG that carries its recipe, and small WebP copies to look at."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile, PngInfo

from tenkaigen_worker.errors import PictureError
from tenkaigen_worker.recipe import BASE_SCHEDULER, Recipe

RECIPE_KEY = "tenkaigen"
PARAMETERS_KEY = "parameters"
XMP_KEY = "XML:com.adobe.xmp"

# Our schedulers by the names that other programs know.
SAMPLERS = {BASE_SCHEDULER: "Euler"}

# Two to four times as fast as Pillow's default, for a fifth to a third more bytes on pictures with some grain. Level 1
# and the Z_RLE strategy save no more time here, and their files are larger.
COMPRESSION = 2

# The longest side of a thumbnail, in pixels.
THUMBNAIL_SIDE = 512
_THUMBNAIL_QUALITY = 80

# IPTC's word for pictures made by a trained model: https://cv.iptc.org/newscodes/digitalsourcetype/
XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
   Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


@dataclass(frozen=True, slots=True)
class MadeFrom:
    """What a file says of itself: the recipe of its job, and which of the job's pictures it is."""

    recipe: Recipe
    index: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values, with this picture's ``index`` and ``seed``."""
        return {**self.recipe.to_json(), "index": self.index, "seed": self.seed}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MadeFrom:
        """What :meth:`to_json` wrote; raises ``ValueError`` on anything else."""
        try:
            index, seed = data.pop("index"), data.pop("seed")
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a picture's recipe: {error}") from error
        return cls(Recipe.from_json(data), index, seed)


def encode_png(image: Image.Image, recipe: Recipe, *, seed: int) -> bytes:
    """Encode a picture (RGB, RGBA or L; others are converted) with the recipe it was made from.

    ``seed`` is the one of ``recipe.seeds`` that made it. The same picture gives the same bytes.
    """
    made_from = MadeFrom(recipe, recipe.seeds.index(seed), seed)
    info = PngInfo()
    info.add_itxt(RECIPE_KEY, json.dumps(made_from.to_json(), ensure_ascii=False))
    info.add_text(PARAMETERS_KEY, parameters(recipe, seed))
    info.add_itxt(XMP_KEY, XMP)

    if image.mode not in ("RGB", "RGBA", "L", "LA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=COMPRESSION, pnginfo=info)
    return buffer.getvalue()


def encode_thumbnail(image: Image.Image) -> bytes:
    """Encode a small copy as WebP: 512 pixels on its longest side, or as many as there are; transparency is kept."""
    small = image.convert("RGBA" if image.has_transparency_data else "RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=_THUMBNAIL_QUALITY, xmp=XMP.encode())
    return buffer.getvalue()


def parameters(recipe: Recipe, seed: int) -> str:
    """Say it as AUTOMATIC1111's web UI does, which most viewers and galleries read."""
    settings = {
        "Steps": recipe.steps,
        "Sampler": SAMPLERS.get(recipe.scheduler, recipe.scheduler),
        "CFG scale": f"{recipe.guidance_scale:g}",
        "Seed": seed,
        "Size": f"{recipe.width}x{recipe.height}",
        "Model": recipe.model,
    }
    lines = [recipe.prompt]
    if recipe.negative_prompt:
        lines.append(f"Negative prompt: {recipe.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items()))
    return "\n".join(lines)


def _quoted(value: object) -> str:
    """Quote what would read as two settings."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text


def read_recipe(source: Path | bytes) -> MadeFrom:
    """Read the recipe out of a PNG file, or its bytes.

    Raises :class:`~tenkaigen_worker.errors.PictureError` when it is no PNG, cannot be read, or carries no recipe.
    """
    name = "this picture" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=["PNG"]) as picture:
            text = _text(picture)
    except UnidentifiedImageError:
        raise PictureError(f"{name} is not a PNG file") from None
    except OSError as error:
        raise PictureError(f"{name} cannot be read: {error.strerror or error}") from None
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"{name} is a damaged PNG file: {error}") from None

    if text is None:
        raise PictureError(f"{name} carries no recipe: it was not made here, or another program removed it")
    try:
        return MadeFrom.from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise PictureError(f"{name} carries a recipe that cannot be read: {error}") from None


def _text(picture: Image.Image) -> str | None:
    """Find the recipe. We write it before the pixels; only where others moved it are these decoded."""
    assert isinstance(picture, PngImageFile)  # noqa: S101 - no other format was let in
    text = picture.info.get(RECIPE_KEY) or picture.text.get(RECIPE_KEY)
    return None if text is None else str(text)
