"""Searching pictures outside the command line: an HTML page, and a widget for a notebook.

`page` writes a file that searches the indexed pictures without Python; `widget` takes any picture,
with a kernel behind it.
"""

import html
import io
import os
import zlib
from pathlib import Path

import numpy as np

from sobook.course.pages.page import Page, data_url, render, thumbnail
from sobook.data.pictures import read_image
from sobook.encoder import Encoder
from sobook.errors import ImageError, SobookError
from sobook.retrieval import nearest_neighbors
from sobook.search import Index, embed_images, sentence

_SIDE = 96  # pixels; about 3 kB per thumbnail
_MOST = 3000  # pictures, about 10 MB


def page(index: Index, out: str | os.PathLike, *, k: int = 12, title: str = "My pictures") -> Path:
    """Write a search page: one HTML file with small pictures and their neighbors inside.

    Any indexed picture is a query: click it, or drop or choose its file. A picture that is not
    indexed has no embedding there, and the page says so.
    """
    if len(index) > _MOST:
        raise SobookError(
            f"{len(index):,} pictures are too many for a page (at most {_MOST:,}): index a part of "
            "the folder."
        )
    cosines, neighbors = np.zeros((1, 0)), np.zeros((1, 0), int)
    if len(index) > 1:
        cosines, neighbors = nearest_neighbors(index.embeddings, min(k, len(index) - 1))
    data = {
        "pictures": [
            {"file": p.name, "name": n, "crc": zlib.crc32(p.read_bytes()), "thumbnail": _small(p)}
            for p, n in zip(index.paths, index.names, strict=True)
        ],
        "neighbors": neighbors.tolist(),
        "cosines": cosines.astype(float).round(3).tolist(),
    }
    return Page(render("search", title, data), title=title).save(out)


def widget(index: Index, encoder: Encoder, k: int = 6):
    """An upload button that shows the neighbors of the picture handed over."""
    import ipywidgets

    upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="Choose a picture")
    output = ipywidgets.HTML()

    def show(_change) -> None:
        for name, content in uploaded(upload.value):
            output.value = answer(index, encoder, name, content, k)

    upload.observe(show, names="value")
    return ipywidgets.VBox([upload, output])


def uploaded(value) -> list[tuple[str, bytes]]:
    """(name, content) of a FileUpload's value: a dict in ipywidgets 7, a tuple of dicts in 8."""
    if isinstance(value, dict):
        return [(name, bytes(item["content"])) for name, item in value.items()]
    return [(item["name"], bytes(item["content"])) for item in value]


def answer(index: Index, encoder: Encoder, name: str, content: bytes, k: int = 6) -> str:
    """HTML with a query picture, what `Index.judge` says of it, and its neighbors."""
    try:
        query = embed_images(encoder, [read_image(io.BytesIO(content))])
    except ImageError:
        return f"<p>{html.escape(name)} is not a picture that can be read.</p>"
    cosines, neighbors = index.search(query, k)
    cells = _figure(f"query: {name}", io.BytesIO(content))
    for cosine, i in zip(cosines[0], neighbors[0], strict=True):
        cells += _figure(f"{index.names[i]} {cosine:.2f}".strip(), index.paths[i])
    verdict = sentence(index.judge(query).iloc[0]) if index.calibration is not None else ""
    return (
        f"<p><strong>{html.escape(verdict)}</strong></p>"
        f"<div style='display:flex;flex-wrap:wrap;gap:8px'>{cells}</div>"
    )


def _figure(caption: str, picture) -> str:
    caption = html.escape(caption)
    return (
        f"<figure style='margin:0;width:{_SIDE}px'><img alt='{caption}' src='{_small(picture)}'>"
        f"<figcaption style='font-size:80%'>{caption}</figcaption></figure>"
    )


def _small(picture) -> str:
    """Address that holds a small JPEG of a picture, a path or an open file."""
    return data_url(thumbnail(read_image(picture), _SIDE), "jpeg", quality=80)
