"""Search in one's own pictures: a folder becomes an index, and a query picture its neighbors.

`index_folder` embeds every picture of a folder, `Index.search` finds the nearest of a new one;
`page` writes an HTML file that searches the indexed pictures without Python, `widget` searches with
any picture inside a notebook.
"""

from __future__ import annotations

import html
import io
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sobook import files
from sobook.data import loader, pictures
from sobook.data.image_sets import ImageSet
from sobook.embedding import embed
from sobook.encoder import Encoder
from sobook.errors import DatasetError, ImageError, SobookError, first_line
from sobook.interactive.page import Page, data_url, render, thumbnail
from sobook.retrieval import nearest_neighbors

_SIDE = 96  # pixels; about 3 kB per thumbnail
MOST_ON_PAGE = 3000  # about 10 MB


@dataclass(frozen=True, eq=False)
class Index:
    """Pictures and their embeddings, ready to be searched.

    Attributes:
        embeddings: (N, D) float32, rows of unit length.
        paths: N picture files.
        names: N class names: the folder of a picture, or "" directly below the root.
        left_out: sentences on what is left out, and on copies: as `ImageSet.notes`.
    """

    embeddings: np.ndarray
    paths: tuple[Path, ...]
    names: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def save(self, file: str | os.PathLike) -> Path:
        """Write an .npz as `sobook embed` does: embeddings, labels, paths, class_names, notes."""
        file = Path(file).expanduser()
        if file.suffix != ".npz":
            raise SobookError(f"{file}: the file of an index must end in .npz.")
        classes, labels = np.unique(self.names, return_inverse=True)
        paths = np.array([str(path) for path in self.paths])
        arrays: dict[str, Any] = {"labels": labels, "paths": paths, "class_names": classes}
        arrays["notes"] = np.array(self.left_out, dtype=str)
        with files.replacing(file) as partial:
            np.savez(partial, embeddings=self.embeddings, **arrays)
        return file

    @classmethod
    def load(cls, file: str | os.PathLike) -> Index:
        """Read what `save` or `sobook embed` has written."""
        file = Path(file).expanduser()
        if not file.is_file():
            raise SobookError(f"there is no index {file}: write it with `sobook search --folder`.")
        try:
            with np.load(file, allow_pickle=False) as data:
                names = data["class_names"][data["labels"]]
                paths = tuple(Path(path) for path in data["paths"].tolist())
                notes = data["notes"].tolist() if "notes" in data else ()
                return cls(data["embeddings"], paths, tuple(names.tolist()), tuple(notes))
        except Exception as error:  # damaged bytes make numpy and zipfile raise anything
            raise SobookError(
                f"{file} is no index of `sobook embed` or `search`: {first_line(error)}."
            ) from None

    def search(self, encoder: Encoder, picture, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """The k pictures nearest to a new one, nearest first.

        Args:
            encoder: the one the index was made with.
            picture: a path, or a file opened for reading bytes.
            k: how many; fewer where the index is smaller.

        Returns:
            cosines (k,) and positions (k,) in `paths`.
        """
        query = embed_picture(encoder, picture)[None]  # (1, D)
        if query.shape[1] != self.embeddings.shape[1]:
            raise SobookError(
                f"the index has {self.embeddings.shape[1]} dimensions, this encoder makes "
                f"{query.shape[1]}: search with the encoder that the index was made with."
            )
        similarities, indices = nearest_neighbors(query, min(k, len(self)), gallery=self.embeddings)
        return similarities[0], indices[0]


def index_folder(
    encoder: Encoder, folder: str | os.PathLike, *, progress: bool = True, most: int | None = None
) -> Index:
    """Embed every picture in a folder and its subfolders.

    Args:
        encoder: used as it is, on the device it is on.
        folder: of pictures; subfolders are taken as classes, but need not be there.
        progress: show a bar.
        most: refuse a folder with more pictures, before it is embedded.

    Raises:
        DatasetError: no folder, no picture that can be read in it, or too many.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder}: name the one that holds your pictures.")
    found = pictures.find(folder)
    if not found.pictures:
        notes = "".join(f" Note: {note}." for note in found.notes())
        raise DatasetError(f"there is no picture in {folder} that can be read.{notes}")
    if most is not None:
        _check_count(len(found.pictures), most)
    names = tuple(_name(path, folder) for path in found.pictures)
    classes, labels = np.unique(names, return_inverse=True)
    class_names = tuple(classes.tolist())
    image_set = ImageSet(tuple(found.pictures), labels, class_names, "folder", "search")
    embeddings = embed(encoder, image_set, progress=progress)
    return Index(embeddings, image_set.paths, names, found.notes())


@torch.inference_mode()
def embed_picture(encoder: Encoder, picture) -> np.ndarray:
    """Embed one picture, a path or an open file, as `embed` would: (D,), unit length."""
    tensor = loader.evaluation_crop(pictures.read_image(picture), encoder.image_size)  # (3, H, W)
    device = next(encoder.parameters()).device
    was_training = encoder.training
    encoder.eval()
    row = encoder(tensor[None].to(device))[0].float().cpu().numpy()
    encoder.train(was_training)
    return row


def page(index: Index, out: str | os.PathLike, *, k: int = 12, title: str = "My pictures") -> Path:
    """Write a search page: one HTML file with small pictures and their neighbors inside.

    Any indexed picture is a query: click it, or drop or choose its file. A picture that is not
    indexed has no embedding there, and the page says so.
    """
    _check_count(len(index), MOST_ON_PAGE)
    if len(index) > 1:
        similarities, neighbors = nearest_neighbors(index.embeddings, min(k, len(index) - 1))
    else:
        similarities, neighbors = np.zeros((1, 0)), np.zeros((1, 0), int)
    data = {
        "pictures": [
            {
                "file": path.name,
                "name": name,
                "crc": zlib.crc32(path.read_bytes()),
                "thumbnail": _small(path),
            }
            for path, name in zip(index.paths, index.names, strict=True)
        ],
        "neighbors": neighbors.tolist(),
        "cosines": similarities.astype(float).round(3).tolist(),
    }
    return Page(render("search", title, data), title=title).save(out)


def _check_count(count: int, most: int) -> None:
    if count > most:
        raise DatasetError(
            f"{count:,} pictures are too many for one page (at most {most:,}): index a part of the "
            "folder."
        )


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
    """HTML of a query picture and its neighbors; a sentence where it is not a picture."""
    try:
        similarities, neighbors = index.search(encoder, io.BytesIO(content), k)
    except ImageError:
        return f"<p>{html.escape(name)} is not a picture that can be read.</p>"
    shown: list[tuple[str, Any]] = [(f"query: {name}", io.BytesIO(content))]
    for similarity, i in zip(similarities, neighbors, strict=True):
        caption = f"{pictures.printable(index.names[i])} {similarity:.2f}".strip()
        shown.append((caption, index.paths[i]))
    cells = [
        f"<figure style='margin:0;width:{_SIDE}px'>"
        f"<img alt='{html.escape(caption)}' src='{_small(picture)}'>"
        f"<figcaption style='font-size:80%'>{html.escape(caption)}</figcaption></figure>"
        for caption, picture in shown
    ]
    return f"<div style='display:flex;flex-wrap:wrap;gap:8px'>{''.join(cells)}</div>"


def _small(picture) -> str:
    """The address of a small JPEG of a picture, a path or an open file."""
    return data_url(thumbnail(pictures.read_image(picture), _SIDE), "jpeg", quality=80)


def _name(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder).parts[:-1]
    if parts and parts[0].casefold() in ("train", "test"):  # a split given as folders
        parts = parts[1:]
    return "/".join(parts)
