"""Drawing with Pillow: text, panels and enlarged slices on one canvas."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from PIL.PngImagePlugin import PngInfo

Rgb: TypeAlias = tuple[int, int, int]
_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

#: Name of the text in the PNG file that says which part of it serves as its thumbnail.
PART = "part"
_DARK = (17, 19, 21)


class Canvas:
    """A picture on which text and pixels are put; positions are (x, y) from the upper left."""

    def __init__(self, width: int, height: int, paper: Rgb) -> None:
        self._image = Image.new("RGB", (width, height), paper)
        self._draw = ImageDraw.Draw(self._image)

    def write(
        self,
        at: tuple[float, float],
        text: str,
        ink: Rgb,
        size: int,
        *,
        anchor: str = "la",
        most: float = 1e6,
    ) -> None:
        """Write one line, cut with an ellipsis where it is wider than `most` pixels."""
        font = _font(size)
        if font.getlength(text) > most:
            while text and font.getlength(text + "\N{HORIZONTAL ELLIPSIS}") > most:
                text = text[:-1]
            text += "\N{HORIZONTAL ELLIPSIS}"
        self._draw.text(at, text, fill=ink, font=font, anchor=anchor)

    def badge(self, at: tuple[int, int], text: str, colour: Rgb) -> int:
        """Write text on a coloured ground and return where it ends."""
        x, y = at
        right = x + round(_font(18, bold=True).getlength(text)) + 24
        self._draw.rounded_rectangle((x, y, right, y + 28), 6, fill=colour)
        place = ((x + right) / 2, y + 14.5)
        self._draw.text(place, text, fill="white", font=_font(18, bold=True), anchor="mm")
        return right

    def tag(self, at: tuple[int, int], text: str, ink: Rgb) -> None:
        """Write small text that remains legible on an image."""
        self._draw.text(
            at, text, fill=ink, font=_font(11), anchor="la", stroke_width=2, stroke_fill=_DARK
        )

    def ends(self, place: tuple[int, int, int, int], letters: str, ink: Rgb) -> None:
        """Write the ends of the axes at a panel's left, right, top and bottom."""
        x, y, width, height = place
        spots = (
            (x + 4, y + height / 2, "lm"),
            (x + width - 4, y + height / 2, "rm"),
            (x + width / 2, y + 3, "ma"),
            (x + width / 2, y + height - 3, "md"),
        )
        for letter, (left, top, anchor) in zip(letters, spots, strict=True):
            self._draw.text(
                *((left, top), letter, ink, _font(11, bold=True), anchor),
                stroke_width=2,
                stroke_fill=_DARK,
            )

    def paste(self, pixels: NDArray[np.uint8], at: tuple[int, int]) -> None:
        """Put pixels (rows, columns, 3) on the canvas."""
        self._image.paste(Image.fromarray(pixels), at)

    def save(self, path: Path, part: tuple[int, int, int, int]) -> None:
        """Write the picture as PNG, with `part` (left, top, right, bottom) as its thumbnail."""
        note = PngInfo()
        note.add_text(PART, " ".join(str(n) for n in part))
        self._image.save(path, "PNG", compress_level=3, pnginfo=note)


def enlarged(
    pixels: NDArray[np.uint8], size: tuple[int, int], *, smooth: bool = True, blur: float = 0.0
) -> NDArray[np.uint8]:
    """Return a slice (rows, columns) at the size (width, height), after a Gaussian blur if any."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if blur:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(image.resize(size, method))


@cache
def _font(size: int, *, bold: bool = False) -> _Font:
    """Return DejaVu Sans, which comes with matplotlib, or Pillow's own font without it."""
    found = find_spec("matplotlib")
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    if found is not None and found.origin is not None:
        file = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / name
        if file.is_file():
            return ImageFont.truetype(file, size)
    return ImageFont.load_default(size)
