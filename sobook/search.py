"""Search in a folder of pictures: the folder becomes an index, and a query picture its neighbors.

Start with `index_folder` and `embed_images`: `Index.search` finds the pictures nearest to a query,
`Index.judge` says whether they are near enough, and which class they vote for. This module knows
nothing of pages; they are in `sobook.course.pages.search_page`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from sobook.data import loader, pictures
from sobook.data.image_sets import ImageSet, class_folders
from sobook.embedding import embed
from sobook.encoder import Encoder
from sobook.errors import SobookError, first_line
from sobook.files import replacing
from sobook.retrieval import nearest_neighbors

_VOTERS = 10  # neighbors that decide on nearness and name
_REFUSED = 0.1  # fraction of the indexed pictures that the threshold refuses
_FEWEST = 20  # pictures; fewer give no threshold
_MOST_ASKED = 1000  # indexed pictures that set the threshold


@dataclass(frozen=True, eq=False)
class Calibration:
    """Reliability of an index, from asking each of its pictures as if it were new.

    The *nearness* of a query is the mean cosine of its ten nearest pictures. Their *vote* is for
    the class with the largest sum of 1/√rank, and the class's part of the total is its share.

    Attributes:
        threshold: below this nearness, the index holds nothing like the query.
        chance: slope and intercept of the log-odds that a vote is right, given its share; not
            finite for pictures without classes.
        rates: fractions of the indexed pictures that the threshold refuses, and that it would still
            answer without their classes in the index.
        strangers: (S, D) embeddings of pictures of nothing, such as noise; a query nearer to one of
            them than to any picture of the index is refused as well.
    """

    threshold: float
    chance: np.ndarray
    rates: np.ndarray
    strangers: np.ndarray

    def __str__(self) -> str:
        refused, answered = self.rates
        text = f"its own pictures, asked as if they were new: {refused:.0%} are refused"
        if np.isfinite(answered):
            text += f"; with their class taken out of the index, {answered:.0%} are still answered"
        return text


@dataclass(frozen=True, eq=False)
class Index:
    """Pictures and their embeddings, ready to be searched.

    Attributes:
        embeddings: (N, D) float32, rows of unit length.
        paths: N picture files.
        names: N class names: the folder of a picture, or "" directly below the root.
        left_out: sentences on files left out, and on copies, as `ImageSet.notes`.
        calibration: what `judge` needs; None for fewer than twenty pictures, and in a file of
            `sobook embed`.
        encoder: fingerprint of the encoder that made the embeddings; "" where it is not known.
    """

    embeddings: np.ndarray
    paths: tuple[Path, ...]
    names: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    calibration: Calibration | None = None
    encoder: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def save(self, file: str | os.PathLike) -> Path:
        """Write an .npz as `sobook embed` does, and the calibration as four more arrays."""
        file = Path(file).expanduser()
        class_names, labels = np.unique(self.names, return_inverse=True)
        arrays = {"embeddings": self.embeddings, "labels": labels, "class_names": class_names}
        arrays |= {"paths": np.array(self.paths, dtype=str), "encoder": np.array(self.encoder)}
        arrays["notes"] = np.array(self.left_out, dtype=str)
        arrays |= vars(self.calibration) if self.calibration else {}
        with replacing(file) as partial, open(partial, "wb") as opened:
            np.savez(opened, **arrays)
        return file

    @classmethod
    def load(cls, file: str | os.PathLike, encoder: Encoder | None = None) -> "Index":
        """Read what `save` or `sobook embed` has written.

        Args:
            file: an .npz.
            encoder: the one to search with.

        Raises:
            SobookError: no index, or one that another encoder has made.
        """
        try:
            with np.load(Path(file).expanduser(), allow_pickle=False) as opened:
                arrays = dict(opened)
            names = tuple(arrays["class_names"][arrays["labels"]].tolist())
            paths, notes = map(Path, arrays["paths"].tolist()), tuple(arrays["notes"].tolist())
            calibration, made_by = None, str(arrays.get("encoder", ""))
            if "threshold" in arrays:
                rest = (arrays[name] for name in ("chance", "rates", "strangers"))
                calibration = Calibration(float(arrays["threshold"]), *rest)
            index = cls(arrays["embeddings"], tuple(paths), names, notes, calibration, made_by)
        except Exception as error:  # numpy and zipfile raise anything on damaged bytes
            raise SobookError(
                f"{file} is no index ({first_line(error)}): make it with `sobook search --folder`."
            ) from None
        if encoder is not None and made_by not in ("", encoder.fingerprint()):
            raise SobookError(
                f"{file} was made by another encoder: name the run that made it, or index the "
                "pictures again with --folder."
            )
        return index

    def search(self, queries: np.ndarray, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and positions (B, k) of the pictures nearest to queries (B, D), nearest first."""
        return nearest_neighbors(queries, min(k, len(self)), gallery=self.embeddings)

    def judge(self, queries: np.ndarray) -> pd.DataFrame:
        """Does the index hold anything like these queries, and under which name?

        Args:
            queries: (B, D) embeddings by the encoder that made the index.

        Returns:
            One row per query: `nearness` and `share` as in `Calibration`; `stranger`: near enough,
            but nearer to a stranger; `nothing`: refused, for that or for its nearness; `name`: the
            class with the largest vote; `chance`: how often such a vote was right in the index.

        Raises:
            SobookError: embeddings of another dimension, or an index without calibration.
        """
        if self.calibration is None:
            raise SobookError(
                f"this index has no calibration: `sobook search --folder` makes one from {_FEWEST} "
                "pictures or more."
            )
        cosines, nearest = self.search(queries, _VOTERS)  # (B, K) each
        strange, _ = nearest_neighbors(queries, 1, gallery=self.calibration.strangers)  # (B, 1)
        slope, intercept = self.calibration.chance
        table = pd.DataFrame({"nearness": cosines.mean(1)})
        far = table["nearness"] < self.calibration.threshold
        table["stranger"] = ~far & (strange[:, 0] > cosines[:, 0])
        table["nothing"] = far | table["stranger"]
        table["name"], table["share"] = _vote(np.array(self.names)[nearest])
        table["chance"] = 1 / (1 + np.exp(-(slope * table["share"] + intercept)))
        return table


def calibrate(embeddings: np.ndarray, names: Sequence[str], strangers: np.ndarray) -> Calibration:
    """Choose a threshold on the indexed pictures, and learn how often their votes are right.

    Every picture is asked as if it were new: its neighbors are sought among all others.

    Args:
        embeddings: (N, D) of the index; more than a thousand are sampled.
        names: N class names.
        strangers: (S, D) embeddings of pictures of nothing.
    """
    codes = np.unique(names, return_inverse=True)[1]  # (N,)
    asked = np.random.default_rng(0).permutation(len(codes))[:_MOST_ASKED]
    cosines = embeddings[asked] @ embeddings.T  # (n, N)
    cosines[np.arange(len(asked)), asked] = -np.inf  # never its own neighbor
    k = min(_VOTERS, len(codes) - 1)
    nearest = np.argsort(-cosines, axis=1)[:, :k]  # (n, K)
    nearness = np.take_along_axis(cosines, nearest, 1).mean(1)
    threshold = float(np.quantile(nearness, _REFUSED))
    elsewhere = np.where(codes == codes[asked, None], -np.inf, cosines)  # as if not indexed
    left = -np.sort(-elsewhere, axis=1)[:, :k]  # −∞ where fewer than k are left
    counts = np.isfinite(left).sum(1)
    without = np.where(np.isfinite(left), left, 0).sum(1) / counts.clip(1)
    rates = np.array([(nearness < threshold).mean(), (without >= threshold).mean()])
    winner, share = _vote(codes[nearest])
    # Add one right and one wrong answer at share 0.5, so that no probability is exactly 0 or 1.
    share, right = np.append(share, [0.5, 0.5]), np.append(winner == codes[asked], [True, False])
    model = LogisticRegression().fit(share[:, None], right)
    chance = np.array([model.coef_[0, 0], model.intercept_[0]])
    if codes.max() == 0:  # no classes
        rates[1], chance = np.nan, np.full(2, np.nan)
    return Calibration(threshold, chance, rates, strangers)


def sentence(judged: pd.Series) -> str:
    """One row of `Index.judge` in words."""
    nearness = f"(nearness {judged['nearness']:.3f})"
    if judged["stranger"]:
        return "nothing like this here (nearer to a picture of nothing than to any of these)"
    if judged["nothing"]:
        return f"nothing like this here {nearness}"
    if not np.isfinite(judged["chance"]):
        return f"there is something like this here {nearness}"
    return f"{judged['name'] or 'no class'}, right with a chance of {judged['chance']:.0%}"


def _vote(names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Names (B, K) of the neighbors, nearest first → the winner (B,), and its share of the vote."""
    weights = 1 / np.sqrt(np.arange(1, names.shape[1] + 1))
    same = names[:, :, None] == names[:, None]  # (B, K, K)
    votes = (same * weights).sum(2)  # (B, K), for the class of each neighbor
    first = votes.argmax(1)[:, None]  # in a tie, the nearer one
    winner, most = (np.take_along_axis(of, first, 1)[:, 0] for of in (names, votes))
    return winner, most / weights.sum()


def _strangers(side: int = 96, each: int = 10) -> list[Image.Image]:
    """Pictures of nothing: noise, plain areas, gradients and checkerboards."""
    rng, arrays = np.random.default_rng(0), []
    rows, columns = np.mgrid[:side, :side] / side
    for _ in range(each):
        first, second = rng.integers(0, 256, (2, 3))
        angle, count = rng.uniform(0, 2 * np.pi), rng.integers(2, 12)
        slope = np.cos(angle) * columns + np.sin(angle) * rows
        board = ((columns * count).astype(int) + (rows * count).astype(int)) % 2
        for mix in (0 * rows, (slope - slope.min()) / np.ptp(slope), board):
            arrays.append(first + mix[..., None] * (second - first))
        arrays.append(rng.integers(0, 256, (side, side, 3)))
    return [Image.fromarray(array.astype(np.uint8)) for array in arrays]


def index_folder(encoder: Encoder, folder: str | os.PathLike, *, progress: bool = True) -> Index:
    """Embed every picture in a folder and its subfolders.

    Args:
        encoder: used as it is, on the device it is on.
        folder: of pictures; subfolders are taken as classes, but need not exist.
        progress: show a bar.

    Raises:
        DatasetError: no such folder, or no picture in it that can be read.
    """
    scan = pictures.scan_folder(Path(folder).expanduser().absolute())
    first: dict[str, Path] = {}  # of exact copies one: they would be each other's neighbors
    for path, digest in zip(scan.pictures, pictures.digests(scan.pictures), strict=True):
        first.setdefault(digest, path)
    paths = tuple(first.values())
    names = tuple(name for _, name in class_folders(scan.folder, paths))
    unlabeled = np.zeros(len(names), dtype=int)
    images = ImageSet(paths, unlabeled, ("",), "folder", "search", scan.notes())
    embeddings = embed(encoder, images, progress=progress)
    calibration = None
    if len(names) >= _FEWEST:
        calibration = calibrate(embeddings, names, embed_images(encoder, _strangers()))
    return Index(embeddings, paths, names, images.notes, calibration, encoder.fingerprint())


@torch.inference_mode()
def embed_images(encoder: Encoder, images: Sequence[Image.Image]) -> np.ndarray:
    """Embed pictures in memory, RGB and upright: (B, D), unit length. Sets evaluation mode."""
    encoder.eval()
    crops = torch.stack([loader.evaluation_crop(image, encoder.image_size) for image in images])
    rows = [encoder(batch.to(encoder.mean.device)).cpu().numpy() for batch in crops.split(50)]
    return np.concatenate(rows)
