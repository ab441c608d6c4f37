"""Pages for a browser: complete in one file, shown inside a notebook or saved.

`render` fills a template of ``assets/`` with a style, a script and data; a page fetches nothing and
needs no kernel. What a page shows is made by `explorer`, `playground`, `search` and `lab`.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from sobook import files

_ASSETS = Path(__file__).resolve().parent / "assets"


def render(name: str, title: str, data: Any, *, scripts: Sequence[str] = ()) -> str:
    """The HTML of a page.

    Args:
        name: of its body, style and script: ``assets/NAME.html``, ``.css`` and ``.js``.
        title: plain text.
        data: what its script finds in `DATA`; whatever JSON can hold.
        scripts: of ``assets/``, that its script builds on.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # ASCII: file names hold bytes
    parts = {
        "title": html.escape(title),
        "style": read_asset("base.css") + read_asset(f"{name}.css"),
        "data": text.replace("<", "\\u003c"),  # so that no string ends or opens a script element
        "script": "".join(map(read_asset, ("base.js", *scripts, f"{name}.js"))),
    }
    template = read_asset("page.html").replace("{{body}}", read_asset(f"{name}.html"))
    # In one pass, so that inserted text is never mistaken for a placeholder.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)


def plain_name(name: str) -> str:
    """Without number and underscores: "007.Barred_Ambertail" → "Barred Ambertail"."""
    return (name.partition(".")[2] or name).replace("_", " ")


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """The middle square of an image, `side` pixels wide."""
    return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)


def data_url(image: Image.Image, format: str, **options: Any) -> str:
    """An image as an address that holds it; `options` as for PIL's ``save``."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return f"data:image/{format};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def sprite(pictures: Sequence[np.ndarray], side: int, quality: int = 72) -> tuple[str, int]:
    """All thumbnails in one WebP as a data address, and how many stand in a row."""
    columns = math.isqrt(len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side))
    for index, picture in enumerate(pictures):
        corner = index % columns * side, index // columns * side
        sheet.paste(thumbnail(Image.fromarray(picture), side), corner)
    return data_url(sheet, "webp", quality=quality, method=4), columns


@dataclasses.dataclass(frozen=True, repr=False)
class Page:
    """A page that shows itself inside a notebook, and can be saved.

    Attributes:
        source: the HTML, complete in itself.
        title: what the frame holds, for readers who do not see it.
        height: of the frame in a notebook, pixels.
        fallback: a figure for places that show no frames, such as a printed page.
    """

    source: str
    title: str
    height: int = 560
    fallback: Any = None

    def beside(self, fallback: Any, *, height: int | None = None) -> Page:
        """The same page with a figure to stand in for it, and perhaps another height."""
        return dataclasses.replace(self, fallback=fallback, height=height or self.height)

    def save(self, path: str | os.PathLike) -> Path:
        """Write the page to a file."""
        path = Path(path).expanduser()
        files.write_text(path, self.source)
        return path

    def _repr_html_(self) -> str:
        return (
            f'<iframe title="{html.escape(self.title)}" sandbox="allow-scripts" loading="lazy" '
            f'style="width:100%;height:{self.height}px;border:0" '
            f'srcdoc="{html.escape(self.source)}"></iframe>'
        )

    def _repr_mimebundle_(self, include=None, exclude=None):
        bundle = {"text/html": self._repr_html_(), "text/plain": repr(self)}
        if self.fallback is None:
            return bundle
        png = io.BytesIO()
        self.fallback.savefig(png, format="png", dpi=72)
        bundle["image/png"] = base64.b64encode(png.getvalue()).decode()
        return bundle, {"image/png": {"alt": self.fallback.get_label()}}

    def __repr__(self) -> str:
        return f"{self.title}: {len(self.source) / 1e6:.2f} MB of HTML; .save(path) writes it"


def read_asset(name: str) -> str:
    """The text of a file in ``assets/``."""
    return (_ASSETS / name).read_text(encoding="utf-8")
