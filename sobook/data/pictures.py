"""Picture files as people have them: decoding, identity, and what a folder holds.

`read_image` decodes one file, `digests` identifies pictures by content, and `scan_folder` looks
through a folder: what it leaves out is counted and named, with the reason. Nothing here knows of
classes.
"""

import contextlib
import hashlib
import importlib
import json
import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from sobook import files
from sobook.errors import DatasetError, ImageError, SobookError, first_line

_NOTES = "NOTES.txt"
_PASSED_OVER = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN")  # waste bins
_SAMPLE = 256_000  # bytes

# About odd EXIF and many pixels, which nobody has to act on. Last, so that other filters win.
warnings.filterwarnings("ignore", module=r"PIL\.", append=True)


def printable(path: object) -> str:
    """A name on one line that any terminal and file takes: odd characters and bytes escaped."""
    text = str(path)
    return text if text.isprintable() else repr(text)[1:-1]


def listed(names: Sequence[str], most: int = 10) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# --- one picture ----------------------------------------------------------------------------------


def read_image(path: str | os.PathLike | IO[bytes]) -> Image.Image:
    """Decode one image file to upright 8-bit RGB.

    Grayscale, palette, alpha (over white), CMYK, Lab, 16-bit and EXIF-rotated images are converted;
    of an animation or several pages the first is taken.

    Args:
        path: of a file, or a file opened for reading bytes.

    Raises:
        ImageError: the file is missing or cannot be decoded; the message names it.
    """
    try:
        return _decode(path)
    except Exception as error:  # decoders raise anything on damaged bytes
        raise _unreadable(path, error) from None


def _unreadable(path: object, error: Exception) -> ImageError:
    what = f"image {printable(path)} cannot be read ({_reason(error)})"
    return ImageError(f"{what}: restore it, or remove it and run the command again.")


def _decode(path: str | os.PathLike | IO[bytes]) -> Image.Image:
    _suffixes()  # registers the decoder for HEIC
    with Image.open(path) as image:
        image.load()
        image.getexif()  # keeps the orientation; broken EXIF could not be written back
        image.info.pop("exif", None)
        upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise ValueError("pixels are floats: save it with 8 or 16 bits")
    if upright.mode.startswith("I"):  # 16 bits: keep the upper eight
        upper = np.asarray(upright).clip(0, 65535) >> 8
        return Image.fromarray(upper.astype(np.uint8)).convert("RGB")
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    layer = upright.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def header_sizes(paths: Sequence[Path], most: int = 100) -> list[tuple[int, int]]:
    """(width, height) of `most` pictures, evenly chosen, without those that cannot be opened."""
    sizes = []
    for index in np.linspace(0, len(paths) - 1, min(len(paths), most)).astype(int):
        with contextlib.suppress(Exception), Image.open(paths[index]) as image:
            sizes.append(image.size)
    return sizes


def _reason(error: Exception) -> str:
    """The decoder's own reason without paths and counts, so that many files share it."""
    reason = getattr(error, "strerror", None) or first_line(error, most=1000)
    return re.sub(r" (\([^)]*\)|'.*'|<.*>)", "", reason)


@cache
def _suffixes() -> frozenset[str]:
    """Suffixes of files that are tried: all that Pillow knows; HEIC where pillow-heif is there."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    return frozenset(Image.registered_extensions())


# --- identity -------------------------------------------------------------------------------------


def digests(paths: Sequence[str | os.PathLike]) -> list[str]:
    """Identities of pictures: SHA-256 of their content, in hexadecimal.

    Files above 1 MB are hashed in part: their size, and the first, middle and last 256 kB. A record
    under ``<data root>/cache``, by absolute path, size and times, saves reading a file again.

    Raises:
        ImageError: a file is missing or may not be read.
    """
    file = files.data_root() / "cache" / "digests.json"
    record, new = _record(file), [path for path in dict.fromkeys(paths) if not _is_recorded(path)]
    if new:
        entries = _map(_hash, new)
        record |= {os.path.abspath(path): entry for path, entry in zip(new, entries, strict=True)}
        with contextlib.suppress(SobookError):  # a read-only cache: they are hashed again next time
            files.write_text(file, json.dumps(record))
    return [record[os.path.abspath(path)][-1] for path in paths]


def _hash(path: str | os.PathLike) -> list[int | str]:
    """Size, times and digest of a file."""
    try:
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
            if stat.st_size <= 10**6:
                content = hashlib.sha256(file.read())
            else:
                content = hashlib.sha256(str(stat.st_size).encode())
                for start in (0, (stat.st_size - _SAMPLE) // 2, stat.st_size - _SAMPLE):
                    file.seek(start)
                    content.update(file.read(_SAMPLE))
    except OSError as error:
        raise _unreadable(path, error) from None
    return [*_size_and_times(stat), content.hexdigest()]


def _size_and_times(stat: os.stat_result) -> list[int]:
    # The time of the last change of any kind as well: a copy may bring the date of its original.
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


@lru_cache(1)
def _record(file: Path) -> dict[str, list]:
    """Absolute path → size, times and digest, as in the file and since."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    return {}


def _is_recorded(path: str | os.PathLike) -> bool:
    entry = _record(files.data_root() / "cache" / "digests.json").get(os.path.abspath(path), [])
    return os.path.exists(path) and entry[:-1] == _size_and_times(os.stat(path))


def _map(function: Callable[[Any], Any], paths: Sequence[Any]) -> list[Any]:
    """Values of a function for all paths, by threads; a bar shows after two seconds."""
    from tqdm.contrib.concurrent import thread_map  # here, since it imports asyncio

    return thread_map(function, paths, desc="looking through pictures", delay=2, disable=None)


# --- a folder -------------------------------------------------------------------------------------


@dataclass
class FolderScan:
    """Pictures in a folder, and what else is there.

    Attributes:
        folder: the one looked through, with all folders below it.
        pictures: those that can be decoded, sorted.
        left_out: other files and folders → why. Callers add what they have no use for.
    """

    folder: Path
    pictures: list[Path]
    left_out: dict[Path, str]

    def notes(self) -> tuple[str, ...]:
        """Sentences for every report: own notes; files left out, by reason; exact copies."""
        by_reason: dict[str, list[str]] = {}
        for path in sorted(self.left_out):
            by_reason.setdefault(self.left_out[path], []).append(self._name(path))
        notes = own_notes(self.folder)
        for why, names in by_reason.items():
            notes.append(f"{len(names):,} left out ({why}): {listed(names)}")
        kept = [path for path in self.pictures if path not in self.left_out]
        first: dict[str, Path] = {}
        pairs = [(p, first.setdefault(d, p)) for p, d in zip(kept, digests(kept), strict=True)]
        if copies := [(path, original) for path, original in pairs if path != original]:
            elsewhere = sum(path.parent != original.parent for path, original in copies)
            names = [f"{self._name(path)} = {self._name(original)}" for path, original in copies]
            notes.append(
                f"exact copies of other pictures: {len(copies):,}, of which {elsewhere:,} in "
                f"another folder: {listed(names)}"
            )
        return tuple(notes)

    def _name(self, path: Path) -> str:
        return printable(path.relative_to(self.folder).as_posix())


def own_notes(folder: Path) -> list[str]:
    """Lines of ``NOTES.txt`` in a folder of pictures: every report on them carries these."""
    file = folder / _NOTES
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


def scan_folder(folder: Path) -> FolderScan:
    """Look through a folder and those below it.

    Every picture is decoded before its digest is recorded, so a damaged one is left out before a
    run and not met in the middle of it. Pictures on record are not decoded again.

    Raises:
        DatasetError: the folder itself cannot be read.
    """

    def problem(path: Path) -> str:
        try:
            if not _is_recorded(path):
                _decode(path)
            return ""
        except Exception as error:  # as in `read_image`
            return f"cannot be decoded: {_reason(error)}"

    pictures, left_out = _walk(folder)
    problems = zip(pictures, _map(problem, pictures), strict=True)
    left_out |= {path: why for path, why in problems if why}
    pictures = [path for path in pictures if path not in left_out]
    digests(pictures)
    return FolderScan(folder, pictures, left_out)


def _walk(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """Files named like pictures in a folder and those below, sorted; all else → the reason.

    Links are followed, but every folder is read once. Hidden files, what operating systems leave
    behind, and our own cache are passed over.
    """
    pictures: list[Path] = []
    left_out: dict[Path, str] = {}
    cache, seen = os.path.realpath(files.data_root() / "cache"), set[str]()

    def unreadable(error: OSError) -> None:
        left_out[Path(error.filename)] = error.strerror or first_line(error)

    for where, subfolders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        target = os.path.realpath(where)
        if target in seen or target == cache:
            subfolders.clear()
            if target in seen:
                left_out[Path(where)] = "a folder that is read already, through a link"
            continue
        seen.add(target)
        subfolders[:] = [n for n in subfolders if n[0] != "." and n not in _PASSED_OVER]
        subfolders.sort(key=lambda name: (os.path.islink(os.path.join(where, name)), name))
        for path in (Path(where, name) for name in names if not name.startswith(".")):
            if (suffix := path.suffix.lower()) not in _suffixes():
                left_out[path] = f"no decoder for {printable(suffix) or 'nameless'} files"
            elif not path.is_file():
                left_out[path] = "not a file, or a link to nothing"
            else:
                pictures.append(path)
    if folder in left_out:
        raise DatasetError(f"{folder} cannot be looked through: {left_out[folder]}.")
    left_out.pop(folder / _NOTES, None)
    return sorted(pictures), left_out
