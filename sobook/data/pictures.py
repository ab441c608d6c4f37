"""Picture files as people have them: one of them as upright RGB, and what a folder holds.

`read_image` reads any picture; `find` looks through a folder, and what it leaves out is counted and
named, with the reason. Nothing here knows of classes: `image_sets` and `search` use the same rule.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageCms
from tqdm.auto import tqdm

from sobook import files
from sobook.errors import DatasetError, ImageError, SobookError, first_line

# Pictures that Pillow or a plugin of it reads, where it is installed.
EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib")
    + (".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpx", ".tga")
    + (".psd", ".qoi", ".avif", ".heic", ".heif", ".hif", ".jxl")
)
_HEIC, _AVIF = "HEIC: pip install pillow-heif", "AVIF: pip install pillow-avif-plugin"
_VIDEO = "video: save frames of it as pictures"
_BY_NAME = {
    _HEIC: (".heic", ".heif", ".hif"),
    _AVIF: (".avif",),
    "JPEG XL: pip install pillow-jxl-plugin": (".jxl",),
    "RAW: export them as JPEG or PNG": (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2")
    + (".raf", ".pef", ".srw", ".x3f"),
    "vector graphics: export them as PNG": (".svg", ".svgz", ".eps", ".ai", ".pdf"),
    _VIDEO: (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".3gp", ".mpg", ".mpeg", ".wmv"),
}
_REASONS = {suffix: why for why, suffixes in _BY_NAME.items() for suffix in suffixes}
# What a file that is no picture, whatever its name says, begins with.
_BEGINNINGS = {
    rb"....ftyp(heic|heix|hevc|mif1|msf1)": _HEIC,
    rb"....ftypavi[fs]": _AVIF,
    rb"....ftyp": _VIDEO,
    rb"\s*<": "a web page or other text",
    rb"version https://git-lfs": "a Git LFS pointer: git lfs pull",
    rb"\xff\xd8\xff|\x89PNG|GIF8|II\*\0|MM\0\*|RIFF....WEBP": "damaged, or of a rare kind",
    rb"\0+$": "begins with zeros: copied or downloaded in part",
    rb".": "not a picture, whatever its name says",
}
# Read under any name that is not known better: IMG_0001, photo.jpg_large, VIDEO.THM …
_PICTURE = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|RIFF....WEBP", re.DOTALL)
_CLUTTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "lost+found"}
_CLUTTER |= {"@eadir", "#recycle", "$recycle.bin", "system volume information"}
_UPRIGHT = {  # by the EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MOST_NAMED = 10

# Of odd EXIF and many pixels: they ask nothing of the reader. Last, so that any other filter wins.
warnings.filterwarnings("ignore", module=r"PIL\.", append=True)


def digests(paths: Sequence[str | os.PathLike]) -> list[str]:
    """SHA-256 of every picture file."""
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]


def printable(path: object) -> str:
    """A name on one line that any terminal and file takes: odd characters and bytes escaped."""
    text = str(path)
    return text if text.isprintable() else repr(text)[1:-1]


# --- one picture ----------------------------------------------------------------------------------


def read_image(path: str | os.PathLike | IO[bytes]) -> Image.Image:
    """Decode one image file to upright 8-bit RGB, whatever it holds.

    Grayscale, palette, alpha (over white), CMYK, Lab, 16-bit and EXIF-rotated images are converted;
    of an animation or several pages the first is taken. Floats and 32-bit integers are shown in
    full: white is 1, 255 or 65,535, the first that no value exceeds (65,535 for integers), else the
    largest value.

    Args:
        path: of a file, or a file opened for reading bytes.

    Raises:
        ImageError: the file is missing or cannot be decoded; the message names it.
    """
    try:
        return _decode(path)
    except FileNotFoundError:
        raise missing(path) from None
    except Exception as error:  # decoders raise anything on damaged bytes
        raise ImageError(
            f"image {printable(path)} cannot be read ({_why(path, error)}): "
            "replace it or leave it out."
        ) from None


def missing(path: object) -> ImageError:
    """The error to raise where a picture is gone."""
    return ImageError(f"image {printable(path)} is missing: run `sobook prepare`, or restore it.")


def header_sizes(paths: Sequence[Path], most: int = 100) -> list[tuple[int, int]]:
    """(width, height) of `most` pictures, evenly chosen, without those that cannot be opened."""
    sizes = []
    for index in np.linspace(0, len(paths) - 1, min(len(paths), most)).astype(int):
        with contextlib.suppress(Exception), _open(paths[index]) as image:
            sizes.append(image.size)
    return sizes


def _open(path: str | os.PathLike | IO[bytes]) -> Image.Image:
    if isinstance(path, str | os.PathLike) and os.path.exists(path) and not os.path.isfile(path):
        raise OSError("not a file")  # opening a pipe would wait for ever
    _readable_suffixes()  # registers the plugins
    return Image.open(path)


def _decode(path: str | os.PathLike | IO[bytes]) -> Image.Image:
    with _open(path) as image:
        image.load()
        orientation: Any = 1
        with contextlib.suppress(Exception):  # a picture with broken EXIF is still a picture
            orientation = image.getexif().get(0x0112)
        rgb = _to_rgb(image)
        return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _to_eight_bits(image).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    rgb = Image.new("RGB", image.size, "white")
    rgb.paste(layer, mask=layer.getchannel("A"))
    return rgb


def _to_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;"):  # 16 bits: keep the upper eight
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    values = np.array(image, np.float32)  # all that follows is in place: it may be 100 megapixels
    values[~np.isfinite(values)] = 0
    np.clip(values, 0, None, out=values)
    top = float(values.max())
    usual = (1, 255, 65535) if image.mode == "F" else (65535,)
    values *= 255 / next((white for white in usual if top <= white), top)
    return Image.fromarray(np.rint(values, out=values).astype(np.uint8))


def _why(path: str | os.PathLike | IO[bytes], error: Exception) -> str:
    """Why a picture cannot be read, in words that many files may share: without their numbers."""
    if isinstance(error, Image.UnidentifiedImageError):
        beginning = _beginning(path)
        found = (why for start, why in _BEGINNINGS.items() if re.match(start, beginning, re.S))
        return next(found, "empty file")
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"decompression bomb, or more than {most:,} pixels: make a smaller copy"
    if isinstance(error, MemoryError):
        return "too large for the memory of this machine"
    reason = getattr(error, "strerror", None) or first_line(error)
    return re.sub(r" *\(.*?\)|: .*", "", reason)


def _beginning(path: str | os.PathLike | IO[bytes]) -> bytes:
    if isinstance(path, str | os.PathLike):
        with open(path, "rb") as file:
            return file.read(64)
    path.seek(0)
    return path.read(64)


@cache
def _readable_suffixes() -> frozenset[str]:
    """Suffixes that Pillow reads, with those of its plugins that are installed."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    for plugin in ("pillow_avif", "pillow_jxl"):
        with contextlib.suppress(ImportError):
            importlib.import_module(plugin)  # registers itself
    return EXTENSIONS.intersection(Image.registered_extensions())


# --- a folder -------------------------------------------------------------------------------------


@dataclass
class Found:
    """What a folder holds.

    Attributes:
        folder: that was looked through, with all folders below it.
        pictures: those that can be read, sorted.
        left_out: other files and folders → why. Callers add what they have no use for.
        digests: of the content of each picture.
    """

    folder: Path
    pictures: list[Path]
    left_out: dict[Path, str]
    digests: dict[Path, str]

    def notes(self) -> tuple[str, ...]:
        """What a report has to say: per reason what is left out, and how many are copies."""
        by_reason: dict[str, list[str]] = {}
        for path in sorted(self.left_out):
            by_reason.setdefault(self.left_out[path], []).append(self.name(path))
        notes = [
            f"{len(names):,} left out ({why}): {listed(names)}" for why, names in by_reason.items()
        ]
        first: dict[str, Path] = {}
        copies = []
        for path in self.pictures:
            if path not in self.left_out and first.setdefault(self.digests[path], path) != path:
                copies.append((path, first[self.digests[path]]))
        if copies:
            elsewhere = sum(path.parent != other.parent for path, other in copies)
            pairs = [f"{self.name(path)} = {self.name(other)}" for path, other in copies]
            notes.append(
                f"exact copies of other pictures: {len(copies):,}, of which {elsewhere:,} in "
                f"another folder: {listed(pairs)}"
            )
        return tuple(notes)

    def name(self, path: Path) -> str:
        """Of a file or folder, as seen from `folder`."""
        return printable(path.relative_to(self.folder).as_posix())


def listed(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def find(folder: Path) -> Found:
    """Look through a folder and those below it: which pictures can be read, and why others cannot.

    Decoding all of a large folder takes a while, so what could be read is noted in the cache, and
    read again only when its size or date has changed.
    """
    names, left_out = walk(folder)
    key = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:12]
    memory = files.data_root() / "cache" / f"pictures-{key}.json"
    known = _remembered(memory)

    def check(path: Path) -> tuple[list | None, str]:
        try:
            stat = path.stat()
            version, old = [stat.st_size, stat.st_mtime_ns], known.get(str(path), [])
            if version == old[:2]:
                return old, ""
            _decode(path)
            content = hashlib.blake2b(path.read_bytes(), digest_size=12).hexdigest()
            return [*version, content], ""
        except Exception as error:  # as in `read_image`
            return None, _why(path, error)

    good: dict[Path, list] = {}
    with ThreadPoolExecutor(files.available_cores()) as pool:
        checked = tqdm(
            zip(names, pool.map(check, names), strict=True),
            total=len(names),
            desc="looking through",
            unit="picture",
            delay=2,
            disable=None,
        )
        for path, (found, why) in checked:
            if found:
                good[path] = found
            else:
                left_out[path] = why
    verdicts = {str(path): found for path, found in good.items()}
    if verdicts != known:
        with contextlib.suppress(SobookError):  # where nothing can be written: next time again
            files.write_json(memory, verdicts)
    return Found(folder, list(good), left_out, {path: found[2] for path, found in good.items()})


def _remembered(memory: Path) -> dict[str, list]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    sound = isinstance(known, dict) and all(
        isinstance(found, list) and len(found) == 3 for found in known.values()
    )
    return known if sound else {}


def walk(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """Pictures, by their names and sorted, in a folder and those below; all else with the reason.

    Links are followed, but every folder is read once. What is hidden, what operating systems leave
    behind, and our own cache are passed over.

    Raises:
        DatasetError: the folder itself cannot be read.
    """
    pictures: list[Path] = []
    left_out: dict[Path, str] = {}
    top, cache = os.path.realpath(folder), os.path.realpath(files.data_root() / "cache")
    real, linked, seen = [(folder, top)], list[tuple[Path, str]](), set[str]()
    while real or linked:
        where, target = real.pop() if real else linked.pop()
        above = where != folder and f"{top}{os.sep}".startswith(f"{target.rstrip(os.sep)}{os.sep}")
        if above or target in seen:
            left_out[where] = "a link to a folder that is read already, or lies above"
            continue
        if target == cache:
            continue
        seen.add(target)
        try:
            with os.scandir(where) as found:
                entries = [entry for entry in found if not is_clutter(entry.name)]
        except OSError as error:
            reason = error.strerror or first_line(error)
            if where == folder:
                raise DatasetError(f"{folder} cannot be looked through: {reason}.") from None
            left_out[where] = reason
            continue
        if not entries and where != folder:
            left_out[where] = "empty folder"
        for entry in entries:
            path = where / entry.name
            try:
                if entry.is_dir() and entry.is_symlink():
                    linked.append((path, os.path.realpath(path)))
                elif entry.is_dir():
                    real.append((path, os.path.join(target, entry.name)))
                elif why := _why_passed_over(entry):
                    left_out[path] = why
                else:
                    pictures.append(path)
            except OSError as error:  # e.g. a link to itself
                left_out[path] = error.strerror or first_line(error)
    return sorted(pictures), left_out


def is_clutter(name: str) -> bool:
    """Hidden, or left behind by Windows, macOS or a network drive."""
    return name.startswith(".") or name.casefold() in _CLUTTER


def _why_passed_over(entry: os.DirEntry) -> str | None:
    if not entry.is_file():
        return "a link to nothing" if entry.is_symlink() else "not a file"
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in _readable_suffixes():
        return None
    if suffix in _REASONS:
        return _REASONS[suffix]
    return None if _PICTURE.match(_beginning(entry.path)) else "not a picture file"
