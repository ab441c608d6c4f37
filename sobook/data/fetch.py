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
from urllib import parse, request
from urllib.error import HTTPError

from sobook import files
from sobook.errors import DatasetError, DownloadError, first_line

_PAUSES = (0.5, 1, 2, 4, 0)  # seconds after a failure; 0: no further try
_TIMEOUT = 30.0  # seconds without a byte
_PASSING = (None, 408, 416, 429, 500, 502, 503, 504)  # None: no answer at all
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError)


def install(
    name: str, card: Mapping, root: Path, check: Callable[[Path], object], progress: bool = True
) -> Path:
    """Fetch, unpack and `check` a benchmark, then rename it into ``root/<its folder>``.

    Args:
        name: of the benchmark.
        card: its entry in the manifest.
        root: the folder that will hold the benchmark's own.
        check: called with a complete folder; raises where it is not what it should be.
        progress: show bars.

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
    """Download a file, resuming what an earlier call left of it, and verify it.

    Args:
        archive: "url" and, if published, "size" in bytes and "sha256".
        dest: the file to make; one that exists is only verified.
        progress: show a bar.

    Raises:
        DownloadError: the server's answer, or another file than the published one.
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
                why = (
                    f"HTTP {code}"
                    if code
                    else getattr(cause, "strerror", "") or type(cause).__name__
                )
                host = parse.urlsplit(archive["url"]).hostname  # the rest may hold a secret
                raise DownloadError(f"{dest} could not be fetched from {host} ({why}).") from None
            time.sleep(pause)
    checksum = hashlib.sha256()
    with open(dest, "rb") as file:
        while "sha256" in archive and (chunk := file.read(1 << 20)):
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
    except HTTPError as error:
        if error.code == 416:  # the part belongs to another file
            part.unlink()
        raise
    with response, open(part, "ab" if response.status == 206 else "wb") as file:
        total = file.tell() + int(response.headers["Content-Length"] or 0)
        hidden = None if progress else True  # None hides it where there is no terminal
        bar = tqdm(None, dest.name, total, initial=file.tell(), unit="B", disable=hidden)
        with bar:
            while chunk := response.read(1 << 16):
                bar.update(file.write(chunk))
        if file.tell() < total:
            raise OSError(0, "the connection was closed early")
    part.replace(dest)


def _unpack(path: Path, archive: Mapping, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if "unpacks_to" not in archive:  # a plain file
            shutil.copy(path, folder)
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as zipped:
                zipped.extractall(folder)  # makes no links, and every name stays inside
        else:
            with tarfile.open(path) as tarred:
                tarred.extraction_filter = getattr(tarfile, "data_filter", None)
                tarred.extractall(folder)
    except _DAMAGED as error:
        raise DatasetError(
            f"{path} is damaged or not the file to use ({first_line(error)}): delete it, try again."
        ) from None
