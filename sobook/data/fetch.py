"""Download, verify and unpack the archives of a benchmark: all of it, or nothing.

A download is ``NAME.part`` until it is complete; the next call resumes it. An archive is unpacked
beside its place and renamed last. Nothing here knows what a data set is.
"""

import hashlib
import os
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib import parse, request

from sobook import files
from sobook.errors import DatasetError, DownloadError, first_line

_PAUSES = (0.5, 1, 2, 4, 0)  # seconds after a failure; 0: no further try
_TIMEOUT = 30.0  # seconds without a byte
_PASSING = (None, 408, 416, 429, 500, 502, 503, 504)  # None: no answer at all


def install(
    name: str, card: Mapping, root: Path, check: Callable[[Path], object], progress: bool = True
) -> Path:
    """Fetch, unpack and `check` a benchmark with this card, then rename it into its own folder.

    Raises:
        DownloadError: an archive cannot be fetched; the message says how to get it by hand.
        DatasetError: a damaged or wrong archive; nothing of it is left.
    """
    home, stage, downloads = root / card["folder"], root / f".{name}.unpacking", root / "downloads"
    with files.lock(root / f".{name}.lock"):
        if home.exists():
            check(home)
            return home
        try:
            files.remove(stage)  # left by a killed process
            for archive in card["archives"]:
                fetch(archive, downloads / archive["file"], progress)
                _unpack(downloads / archive["file"], archive, stage / archive.get("place", ""))
            inner = stage / card["archives"][0]["unpacks_to"]
            check(inner)
            os.replace(inner, home)
        except DownloadError as error:
            by_hand = card["by_hand"].format(downloads=downloads, home=home)
            raise DownloadError(f"{error} To get {name} by hand: {by_hand}") from None
        finally:
            files.remove(stage)
    return home


def fetch(archive: Mapping, dest: Path, progress: bool = True) -> None:
    """Download a file, unless it is there, and verify it.

    Args:
        archive: "url" and, if published, "size" in bytes and "sha256".
        dest: the file to make.
        progress: show a bar.
    """
    if not dest.exists() and "url" not in archive:
        raise DownloadError(f"{dest} is missing.")
    for pause in () if dest.exists() else _PAUSES:
        try:
            _download(archive["url"], dest, progress)
            break
        except (OSError, HTTPException) as error:
            code, cause = getattr(error, "code", None), getattr(error, "reason", error)
            if not pause or code not in _PASSING:
                why = f"HTTP {code}" if code else getattr(cause, "strerror", "") or "no answer"
                host = parse.urlsplit(archive["url"]).hostname  # the rest may hold a secret
                raise DownloadError(f"{dest} could not be fetched from {host} ({why}).") from None
            time.sleep(pause)
    checksum = hashlib.sha256()
    with open(dest, "rb") as file:
        while chunk := file.read(1 << 20):
            checksum.update(chunk)
    actual = {"size": dest.stat().st_size, "sha256": checksum.hexdigest()}
    if any(archive.get(key, value) != value for key, value in actual.items()):
        raise DownloadError(f"{dest} is not the published file: delete it and try again.")


def _download(url: str, dest: Path, progress: bool) -> None:
    """Resume ``NAME.part`` where the server can, else start again; rename it when complete."""
    from tqdm.auto import tqdm  # here, since it imports asyncio

    part = dest.with_name(f"{dest.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "sobook (course material)", "Range": f"bytes={have}-"}
    try:
        response = request.urlopen(request.Request(url, headers=headers), timeout=_TIMEOUT)
    except OSError as error:
        if getattr(error, "code", None) == 416:  # the part belongs to another file
            part.unlink()
        raise
    with response, open(part, "ab" if response.status == 206 else "wb") as file:
        total = file.tell() + int(response.headers["Content-Length"] or 0)
        hidden = None if progress else True  # None hides it where there is no terminal
        bar: dict[str, Any] = {"desc": dest.name, "total": total, "initial": file.tell()}
        with tqdm.wrapattr(file, "write", **bar, disable=hidden) as writing:
            shutil.copyfileobj(response, writing)
        if file.tell() < total:
            raise OSError(0, "the connection was closed early")
    part.replace(dest)


def _unpack(path: Path, archive: Mapping, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if "unpacks_to" not in archive:  # a plain file
            shutil.copy(path, folder)
        elif zipfile.is_zipfile(path):
            shutil.unpack_archive(path, folder, "zip")  # skips names that lead outside; no links
        else:
            shutil.unpack_archive(path, folder, "tar", filter="data")
    except (shutil.ReadError, zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise DatasetError(
            f"{path} is damaged or not the file to use ({first_line(error)}): delete it, try again."
        ) from None
