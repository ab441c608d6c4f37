"""Search in one's own pictures: a folder becomes an index, and a query picture its neighbors.

`index_folder` embeds every picture of a folder, `Index.search` finds the nearest of a new one, and
`Index.judge` says whether they are near enough, and which class they vote for. `page` writes an
HTML file that searches the indexed pictures without Python, `widget` searches with any picture
inside a notebook.
"""

from __future__ import annotations

import html
import io
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from sobook import files
from sobook.course.pages.page import Page, data_url, render, thumbnail
from sobook.data import loader, pictures
from sobook.data.image_sets import ImageSet
from sobook.embedding import embed
from sobook.encoder import Encoder
from sobook.errors import DatasetError, ImageError, SobookError, first_line
from sobook.retrieval import nearest_neighbors

_SIDE = 96  # pixels; about 3 kB per thumbnail
MOST_ON_PAGE = 3000  # about 10 MB
_VOTERS = 10  # neighbors that are asked for nearness and name
_ENOUGH = 20  # pictures; from fewer, no threshold can be had
_ASKED = 1000  # known pictures that set the threshold, at most

_ARRAYS = ("threshold", "chance", "rates", "strangers")  # of a calibration, in the file of an index


@dataclass(frozen=True, eq=False)
class Calibration:
    """What an index knows of its own answers: each of its pictures was asked as if it were new.

    The *nearness* of a query is the mean cosine of its ten nearest pictures. Their *vote* is for
    the class with the largest sum of 1/√rank, and the class's part of the total is its share.

    Attributes:
        threshold: below this nearness, there is nothing like the query here.
        chance: slope and intercept of the log-odds that a vote is right, given its share. Not
            finite where the pictures have no classes.
        rates: fraction of the known pictures that the threshold refuses, and fraction that it would
            still answer if their classes were not in the index.
        strangers: (S, D) embeddings of pictures of nothing, such as noise. What is nearer to one of
            them than to any picture of the index is refused as well.
    """

    threshold: float
    chance: np.ndarray
    rates: np.ndarray
    strangers: np.ndarray

    def __str__(self) -> str:
        refused, answered = self.rates
        without = "" if np.isnan(answered) else f"; {answered:.0%} answered without their class"
        return f"{refused:.0%} refused{without}"


@dataclass(frozen=True, eq=False)
class Index:
    """Pictures and their embeddings, ready to be searched.

    Attributes:
        embeddings: (N, D) float32, rows of unit length.
        paths: N picture files.
        names: N class names: the folder of a picture, or "" directly below the root.
        left_out: sentences on what is left out, and on copies: as `ImageSet.notes`.
        calibration: what `judge` needs; None for fewer than twenty pictures, and in a file of
            `sobook embed` or of an older version.
    """

    embeddings: np.ndarray
    paths: tuple[Path, ...]
    names: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    calibration: Calibration | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def save(self, file: str | os.PathLike) -> Path:
        """Write an .npz as `sobook embed` does, and the calibration as four more arrays."""
        file = Path(file).expanduser()
        if file.suffix != ".npz":
            raise SobookError(f"{file}: the file of an index must end in .npz.")
        classes, labels = np.unique(self.names, return_inverse=True)
        paths = np.array([str(path) for path in self.paths])
        arrays: dict[str, Any] = {"labels": labels, "paths": paths, "class_names": classes}
        arrays["notes"] = np.array(self.left_out, dtype=str)
        if self.calibration is not None:
            arrays |= vars(self.calibration)
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
                found = None
                if "threshold" in data:
                    threshold, *rest = (data[name] for name in _ARRAYS)
                    found = Calibration(float(threshold), *rest)
                return cls(data["embeddings"], paths, tuple(names.tolist()), tuple(notes), found)
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
        similarities, indices = self._nearest(embed_picture(encoder, picture)[None], k)
        return similarities[0], indices[0]

    def judge(self, queries: np.ndarray) -> pd.DataFrame:
        """Is there anything like these queries here, and under which name?

        Args:
            queries: (B, D) embeddings, from the encoder the index was made with; of a single
                picture, ``embed_picture(encoder, picture)[None]``.

        Returns:
            One row per query. `nearness` and `share` are explained at `Calibration`; `stranger` is
            True where the query is near enough and a stranger is nearer than any picture of the
            index; `nothing` where there is nothing like the query, for that or for its nearness;
            `name` is the class that got the vote, and `chance` how often such a vote was right
            among the known pictures.

        Raises:
            SobookError: another encoder's embeddings, or an index without calibration.
        """
        if self.calibration is None:
            raise SobookError(
                "this index cannot judge: make it again with `sobook search --folder`, of "
                f"{_ENOUGH} pictures or more."
            )
        names = np.array(self.names)
        similarities, indices = self._nearest(queries, _VOTERS)  # (B, K) each
        winner, share = _vote(names[indices])
        strange, _ = nearest_neighbors(queries, 1, gallery=self.calibration.strangers)  # (B, 1)
        nearness = similarities.mean(1)
        far = nearness < self.calibration.threshold
        stranger = ~far & (strange[:, 0] > similarities[:, 0])
        slope, intercept = self.calibration.chance
        return pd.DataFrame(
            {
                "nearness": nearness,
                "stranger": stranger,
                "nothing": far | stranger,
                "name": winner,
                "share": share,
                "chance": 1 / (1 + np.exp(-(slope * share + intercept))),
            }
        )

    def _nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and positions (B, k) of the nearest of queries (B, D)."""
        if queries.shape[1] != self.embeddings.shape[1]:
            raise SobookError(
                f"the index has {self.embeddings.shape[1]} dimensions, this encoder makes "
                f"{queries.shape[1]}: search with the encoder that the index was made with."
            )
        return nearest_neighbors(queries, min(k, len(self)), gallery=self.embeddings)


def calibrate(
    embeddings: np.ndarray, names: Sequence[str], strangers: np.ndarray, *, refuse: float = 0.1
) -> Calibration:
    """Choose a threshold on the known pictures, and learn how often their votes are right.

    Every picture is asked as if it were new: its neighbors are sought among all others.

    Args:
        embeddings: (N, D) of the index; more than a thousand are sampled.
        names: N class names.
        strangers: (S, D) embeddings of pictures of nothing.
        refuse: fraction of the known pictures that may be refused.
    """
    codes = np.unique(names, return_inverse=True)[1]  # (N,)
    asked = np.random.default_rng(0).permutation(len(codes))[:_ASKED]
    cosines = embeddings[asked] @ embeddings.T  # (n, N)
    cosines[np.arange(len(asked)), asked] = -np.inf  # never its own neighbor
    k = min(_VOTERS, len(codes) - 1)
    nearest = np.argsort(-cosines, axis=1)[:, :k]  # (n, K)
    nearness = np.take_along_axis(cosines, nearest, 1).mean(1)
    threshold = float(np.quantile(nearness, refuse))
    if codes.max() == 0:  # no classes
        rates = np.array([(nearness < threshold).mean(), np.nan])
        return Calibration(threshold, np.full(2, np.nan), rates, strangers)
    winner, share = _vote(codes[nearest])
    elsewhere = np.where(codes == codes[asked, None], -np.inf, cosines)  # as if not indexed
    without = -np.sort(-elsewhere, axis=1)[:, :k].mean(1)
    rates = np.array([(nearness < threshold).mean(), (without >= threshold).mean()])
    return Calibration(threshold, _log_odds(share, winner == codes[asked]), rates, strangers)


def sentence(judged: pd.Series) -> str:
    """One row of `Index.judge` in words."""
    if judged["nothing"]:
        if judged["stranger"]:
            return "nothing like this here (nearer to a picture of nothing than to any of these)"
        return f"nothing like this here (nearness {judged['nearness']:.3f})"
    if not np.isfinite(judged["chance"]):
        return f"there is something like this here (nearness {judged['nearness']:.3f})"
    name = pictures.printable(judged["name"] or "no class")
    return f"{name}, right with a chance of {judged['chance']:.0%}"


def _vote(names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Names (B, K) of the neighbors, nearest first → the winner (B,), and its share of the vote."""
    weights = 1 / np.sqrt(np.arange(1, names.shape[1] + 1))
    same = names[:, :, None] == names[:, None]  # (B, K, K)
    votes = (same * weights).sum(2)  # (B, K): of the class of each neighbor
    first = votes.argmax(1)[:, None]  # in a tie, the nearer one
    winner, most = (np.take_along_axis(of, first, 1)[:, 0] for of in (names, votes))
    return winner, most / weights.sum()


def _log_odds(share: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Slope and intercept of the log-odds of being right, given the share of the vote."""
    from sklearn.linear_model import LogisticRegression

    # One right and one wrong answer more, at an even share, so that no chance is 0 or 1.
    share, right = np.append(share, [0.5, 0.5]), np.append(right, [True, False])
    model = LogisticRegression().fit(share[:, None], right)
    return np.array([model.coef_[0, 0], model.intercept_[0]])


def _strangers(side: int = 96, each: int = 10) -> list[Image.Image]:
    """Pictures of nothing: noise, plain areas, gradients and checkerboards."""
    rng, found = np.random.default_rng(0), []
    rows, columns = np.mgrid[:side, :side] / side
    for _ in range(each):
        first, second = rng.integers(0, 256, (2, 3))
        angle, count = rng.uniform(0, 2 * np.pi), rng.integers(2, 12)
        slope = np.cos(angle) * columns + np.sin(angle) * rows
        board = ((columns * count).astype(int) + (rows * count).astype(int)) % 2
        for mix in (0 * rows, (slope - slope.min()) / np.ptp(slope), board):
            found.append(first + mix[..., None] * (second - first))
        found.append(rng.integers(0, 256, (side, side, 3)))
    return [Image.fromarray(picture.astype(np.uint8)) for picture in found]


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
    calibration = None
    if len(names) >= _ENOUGH:
        calibration = calibrate(embeddings, names, embed_images(encoder, _strangers()))
    return Index(embeddings, image_set.paths, names, found.notes(), calibration)


def embed_picture(encoder: Encoder, picture) -> np.ndarray:
    """Embed one picture, a path or an open file, as `embed` would: (D,), unit length."""
    return embed_images(encoder, [pictures.read_image(picture)])[0]


@torch.inference_mode()
def embed_images(encoder: Encoder, images: Sequence[Image.Image]) -> np.ndarray:
    """Embed pictures that are in memory, RGB and upright, as `embed` would: (B, D), unit length."""
    device = next(encoder.parameters()).device
    was_training = encoder.training
    encoder.eval()
    crops = torch.stack([loader.evaluation_crop(image, encoder.image_size) for image in images])
    rows = [encoder(batch.to(device)).float().cpu().numpy() for batch in crops.split(50)]
    encoder.train(was_training)
    return np.concatenate(rows)


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
    """HTML of a query picture, what `judge` says of it, and its neighbors."""
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
    said = ""
    if index.calibration is not None:
        judged = index.judge(embed_picture(encoder, io.BytesIO(content))[None])
        said = f"<p><strong>{html.escape(sentence(judged.iloc[0]))}</strong></p>"
    return f"{said}<div style='display:flex;flex-wrap:wrap;gap:8px'>{''.join(cells)}</div>"


def _small(picture) -> str:
    """The address of a small JPEG of a picture, a path or an open file."""
    return data_url(thumbnail(pictures.read_image(picture), _SIDE), "jpeg", quality=80)


def _name(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder).parts[:-1]
    if parts and parts[0].casefold() in ("train", "test"):  # a split given as folders
        parts = parts[1:]
    return "/".join(parts)
