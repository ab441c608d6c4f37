"""Fetching a file so that it arrives whole: resumed, retried, from the next mirror, verified.

Nothing here knows of data sets. A file appears under its own name only when it is complete and
verified; until then it is ``NAME.part``.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path

import requests
from tqdm.auto import tqdm

from sobook.errors import DownloadError

_CHUNK = 1 << 20
_PIECE = 1 << 14  # what a broken connection may cost
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # worth another try at the same address
_LOGIN = {401, 402, 403, 407, 451}


class Unavailable(DownloadError):
    """No address delivered the file."""


class _NextMirror(Exception):
    """This address will not do, however often it is asked."""


class _TryAgain(Exception):
    """This address may do a little later; `after` is the pause the server asked for."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class _WrongBytes(Exception):
    """Complete, but not the published file."""


@dataclass(frozen=True)
class Pace:
    """How patient `fetch` is, in seconds and tries."""

    tries: int = 5  # in a row without a new byte, at each address
    first_pause: float = 1.0  # doubled after each failure
    longest_pause: float = 120.0  # a server that asks for more is left for the next mirror
    connect: float = 15.0
    stall: float = 30.0  # without a single byte


@dataclass(frozen=True)
class _Wanted:
    """The file asked for, and what is known of it."""

    dest: Path
    size: int | None
    sums: dict[str, str]
    room: float

    @property
    def part(self) -> Path:
        return self.dest.with_name(self.dest.name + ".part")

    @property
    def tag(self) -> Path:  # which version of the file the part belongs to
        return self.dest.with_name(self.dest.name + ".part.tag")


def fetch(
    urls: Sequence[str],
    dest: str | Path,
    *,
    size: int | None = None,
    md5: str | None = None,
    sha256: str | None = None,
    room: float = 1.0,
    progress: bool = True,
    pace: Pace | None = None,
) -> Path:
    """Download `dest` from the first of `urls` that delivers it whole; resumes what is there.

    Args:
        urls: addresses of the same file, in the order to try.
        dest: the file to make; when it exists already it is only verified.
        size: its bytes, if published.
        md5: its checksum, if published; likewise `sha256`.
        room: free disk space needed before starting, in multiples of the file's size.
        progress: show a bar.
        pace: tries, pauses and time limits.

    Raises:
        DownloadError: with what each address answered.
    """
    sums = {kind: value for kind, value in (("md5", md5), ("sha256", sha256)) if value}
    wanted = _Wanted(Path(dest), size, sums, room)
    if wanted.dest.exists():
        if wrong := mismatch(wanted.dest, size, md5=md5, sha256=sha256):
            raise DownloadError(
                f"{dest} is not the published file ({wrong}): delete it, try again."
            )
        return wanted.dest
    wanted.dest.parent.mkdir(parents=True, exist_ok=True)
    if size:
        check_disk(wanted.dest.parent, size * room - _size(wanted.part), wanted.dest.name)
    answers = []
    for url in urls:
        try:
            _fetch_from(url, wanted, progress, pace or Pace())
            wanted.part.replace(wanted.dest)
            wanted.tag.unlink(missing_ok=True)
            return wanted.dest
        except _NextMirror as reason:
            answers.append(f"{url} {reason}")
    raise Unavailable(f"{wanted.dest.name} could not be fetched: {'; '.join(answers)}.")


def mismatch(path: Path, size: int | None = None, **sums: str | None) -> str | None:
    """What tells the file from the published one, or None; checksums by name, e.g. ``md5=``."""
    if size is not None and path.stat().st_size != size:
        return f"it has {path.stat().st_size:,} bytes, not {size:,}"
    hashes = {kind: hashlib.new(kind) for kind, value in sums.items() if value}
    if hashes:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                for digest in hashes.values():
                    digest.update(chunk)
    for kind, digest in hashes.items():
        if digest.hexdigest() != sums[kind].lower():
            return f"its {kind} is {digest.hexdigest()}, not {sums[kind].lower()}"
    return None


def check_disk(folder: Path, need: float, what: str) -> None:
    """Refuse to start what cannot be finished: `need` is in bytes."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise DownloadError(
            f"{what} needs {need / 1e9:.1f} GB in {folder}, but only {free / 1e9:.1f} GB are free: "
            "make room, or choose another place (--root or SOBOOK_DATA)."
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch_from(url: str, wanted: _Wanted, progress: bool, pace: Pace) -> None:
    """Fill and verify the part from one address; failures count only while nothing new arrives."""
    failures, most, wrong = 0, _size(wanted.part), 0
    while True:
        try:
            _one_request(url, wanted, progress, pace)
            return _verify(wanted)
        except _WrongBytes as error:
            wrong += 1
            trouble = _TryAgain(str(error))
            if wrong == 2:  # the first part may have mixed two versions, the second is all theirs
                raise _NextMirror(str(error)) from None
        except requests.TooManyRedirects:
            raise _NextMirror("redirects in a loop") from None
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
            raise _NextMirror(f"is no address to fetch from ({error})") from None
        except requests.RequestException as error:
            trouble = _TryAgain(_in_words(error, pace))
        except _TryAgain as error:
            trouble = error
        failures = 1 if _size(wanted.part) > most else failures + 1
        most = max(most, _size(wanted.part))
        if failures >= pace.tries or trouble.after > pace.longest_pause:
            raise _NextMirror(str(trouble))
        backoff = min(pace.first_pause * 2 ** (failures - 1), pace.longest_pause)
        time.sleep(max(backoff, trouble.after))


def _in_words(error: requests.RequestException, pace: Pace) -> str:
    if isinstance(error, requests.ConnectTimeout):
        return f"did not answer within {pace.connect:g} s"
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return f"sent nothing for {pace.stall:g} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "broke off"
    if "RemoteDisconnected" in str(error) or "reset by peer" in str(error):
        return "hung up"
    return f"could not be reached ({type(error).__name__}: is this machine online?)"


def _one_request(url: str, wanted: _Wanted, progress: bool, pace: Pace) -> None:
    """One request: the part goes on where the server does so, else it starts again."""
    have = _size(wanted.part)
    if wanted.size is not None and have == wanted.size:
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": "sobook (course material)"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if wanted.tag.exists() and (tag := wanted.tag.read_text(encoding="utf-8")):
            headers["If-Range"] = tag
    with requests.Session() as session:
        session.max_redirects = 10
        timeout = (pace.connect, pace.stall)
        with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
            start, total = _judge(response, wanted, have)
            if start == 0:
                _begin(wanted, response)
            _append(response, wanted, start, total, progress)


def _judge(response: requests.Response, wanted: _Wanted, have: int) -> tuple[int, int | None]:
    """Accept or refuse the answer; return where its bytes start and how long the file will be."""
    code, headers = response.status_code, response.headers
    if code in _PASSING:
        raise _TryAgain(f"answered {code} {response.reason}", _retry_after(headers))
    if code == 416:  # asked for what is beyond the end: the part is not of this file
        wanted.part.unlink(missing_ok=True)
        raise _TryAgain("has a file shorter than the part fetched before")
    if code in _LOGIN:
        raise _NextMirror(f"answered {code} {response.reason}: it wants a login or an agreement")
    if code not in (200, 206):
        raise _NextMirror(f"answered {code} {response.reason}")
    if "html" in headers.get("Content-Type", "").lower():
        raise _NextMirror(_page(next(response.iter_content(4096), b"")))
    start, total = 0, _number(headers.get("Content-Length"))
    if code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
        if not found or int(found[1]) != have:
            wanted.part.unlink(missing_ok=True)
            raise _TryAgain("went on from another place than it was asked to")
        start, total = have, _number(found[2])
    if None not in (total, wanted.size) and total != wanted.size:
        raise _NextMirror(f"has {total:,} bytes, not the {wanted.size:,} published")
    if wanted.size is None and total is not None:
        check_disk(wanted.dest.parent, total * wanted.room - start, wanted.dest.name)
    return start, total


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _retry_after(headers) -> float:
    """Seconds asked for by Retry-After, which holds a number or a date."""
    value = headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    with suppress(ValueError, TypeError):
        return max((parsedate_to_datetime(value) - datetime.now(timezone.utc)).total_seconds(), 0.0)
    return 0.0


def _page(text: bytes) -> str:
    title = re.search(rb"<title[^>]*>\s*(.*?)\s*</title>", text, re.I | re.S)
    named = f" ({title[1].decode(errors='replace')[:80]!r})" if title else ""
    return (
        f"served a web page{named} instead of the file: it wants a login or a confirmation, so "
        "download it in a browser"
    )


def _begin(wanted: _Wanted, response: requests.Response) -> None:
    """An empty part, with the version that it will hold a piece of."""
    wanted.part.unlink(missing_ok=True)
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    wanted.tag.write_text("" if tag.startswith("W/") else tag, encoding="utf-8")


def _append(response, wanted: _Wanted, start: int, total: int | None, progress: bool) -> None:
    bar = tqdm(
        total=total, initial=start, unit="B", unit_scale=True, desc=wanted.dest.name,
        disable=None if progress else True, leave=False,
    )  # fmt: skip
    have, total = start, total or wanted.size
    with bar, wanted.part.open("ab") as file:
        for chunk in response.iter_content(_PIECE):
            if have == 0 and re.match(rb"\s*(<!doctype html|<html)", chunk[:256], re.I):
                raise _NextMirror(_page(chunk))
            have += len(chunk)
            if have > (wanted.size or have):
                break
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and have < total:
        raise _TryAgain(f"broke off after {have:,} of {total:,} bytes")


def _verify(wanted: _Wanted) -> None:
    """A complete part that is wrong is thrown away."""
    if wrong := mismatch(wanted.part, wanted.size, **wanted.sums):
        wanted.part.unlink(missing_ok=True)
        raise _WrongBytes(f"sent another file than the published one ({wrong})")
