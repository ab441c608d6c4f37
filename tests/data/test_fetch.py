"""Fetching against a local server with every fault we know of, and unpacking hostile archives."""

import hashlib
import http.server
import io
import random
import socket
import stat
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest

from sobook.data import benchmarks, fetch, image_sets
from sobook.errors import DatasetError, DownloadError, SobookError

BODY = random.Random(0).randbytes(300_000)
KNOWN = {"size": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest()}

# What the server answers to the first request, the second, ...; the last answer is for all others.
ANSWERS: dict[str, list[dict]] = {
    "good": [{}],
    "drops-midway": [{"upto": 100_000}],
    "ignores-range": [{"upto": 100_000}, {"ranges": False}],
    "busy": [{"code": 429}, {"code": 503}, {}],
    "stalls-once": [{"upto": 1000, "stall": True}, {}],
    "unsized": [{"sized": False}],
    "slow": [{"pause": 0.01}],
    "missing": [{"code": 404}],
    "overloaded": [{"code": 503}],
    "page": [{"body": b"<html></html>", "kind": "text/html; charset=utf-8"}],
    "loop": [{"code": 302}],
    "shorter": [{"body": BODY[:200_000]}],
    "wrong-bytes": [{"body": bytes(len(BODY))}],
    "stalls": [{"upto": 1000, "stall": True}],
}


class Faulty(http.server.BaseHTTPRequestHandler):
    """Serves `server.body`; the path names the fault. Requests are logged in `server.log`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        fault, asked = self.path.strip("/"), self.headers.get("Range")
        self.server.log.append((fault, asked))
        count = sum(one == fault for one, _ in self.server.log)
        self.close_connection = True
        start = int(asked[6:-1]) if asked else 0
        self.serve(start, **{"body": self.server.body, **ANSWERS[fault][:count][-1]})

    def serve(self, start, body, code=None, upto=None, ranges=True, kind="image/x", **more):
        start = start if ranges else 0
        if start >= len(body):
            code = 416
        rest = b"" if code else body[start:]
        self.send_response(code or (206 if start else 200))
        self.send_header("Content-Type", kind)
        self.send_header("Location", "/loop")
        self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if more.get("sized", True):
            self.send_header("Content-Length", str(len(rest)))
        self.send_header("Connection", "close")
        self.end_headers()
        rest = rest[:upto]
        for i in range(0, len(rest), 1 << 16):
            self.wfile.write(rest[i : i + (1 << 16)])
            time.sleep(more.get("pause", 0))
        if "stall" in more:
            self.server.over.wait(5)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # clients that hang up are part of the tests


@pytest.fixture
def server():
    server = Server(("127.0.0.1", 0), Faulty)
    server.log, server.over, server.body = [], threading.Event(), BODY
    server.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        socket.create_connection(server.server_address, timeout=2).close()
    except OSError:
        pytest.skip("127.0.0.1 cannot be reached (no network interface is up)")
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "_TRIES", 3)
    monkeypatch.setattr(fetch, "_PAUSE", 0.01)


@pytest.fixture
def part(tmp_path):
    """Where a part of the file would lie."""
    (tmp_path / "in").mkdir()
    return tmp_path / "in" / "file.bin.part"


@pytest.fixture
def download(server, part, monkeypatch):
    """Fetch with a fault, see that the file arrived as it should, and return what was asked for."""

    def download(fault, **known):
        if "stall" in fault:  # only there, or a busy machine would seem to stall
            monkeypatch.setattr(fetch, "_TIMEOUT", (10, 0.4))
        dest = part.with_suffix("")
        fetch.fetch(server.url + fault, dest, **{**KNOWN, **known}, progress=False)
        assert dest.read_bytes() == BODY
        assert sorted(dest.parent.iterdir()) == [dest]  # no part is left
        return [asked for _, asked in server.log]

    return download


def test_plain_download_then_nothing_to_do(download):
    assert download("good") == [None]
    assert download("good") == [None]


def test_resumes_what_broke_off(download):
    starts = [int((asked or "bytes=0-")[6:-1]) for asked in download("drops-midway")]
    assert starts == sorted(starts) and len(starts) == 4
    assert all(start >= i * 80_000 for i, start in enumerate(starts))  # hardly a byte twice


def test_resumes_the_part_of_an_earlier_run(download, part):
    part.write_bytes(BODY[:123_456])
    assert download("good") == ["bytes=123456-"]


def test_complete_part_is_not_fetched_again(download, part):
    part.write_bytes(BODY)
    assert download("missing") == []


def test_a_part_of_another_file_is_thrown_away(download, part):
    part.write_bytes(BODY + b"more")
    assert download("good", size=None) == ["bytes=300004-", None]
    part.with_suffix("").unlink()
    part.write_bytes(bytes(100_000))
    with pytest.raises(DownloadError, match="another file.*try again"):
        download("good")
    download("good")


@pytest.mark.parametrize("fault", ["ignores-range", "stalls-once", "busy"])
def test_passing_faults_are_retried(download, fault):
    assert len(download(fault)) == len(ANSWERS[fault])


def test_server_that_names_no_length(download):
    assert download("unsized", size=None) == [None]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("missing", "answered 404"),
        ("overloaded", "answered 503"),
        ("page", "served a web page"),
        ("loop", "answered 302"),
        ("shorter", "200,000 bytes, not the 300,000"),
        ("wrong-bytes", "sha256"),
        ("stalls", "3 times in a row"),
    ],
)
def test_failure_says_why(download, fault, words, part):
    with pytest.raises(DownloadError, match=words):
        download(fault)
    assert not part.with_suffix("").exists()
    download("good")


def test_disk_is_checked_before_a_byte_is_written(download, part, monkeypatch):
    free = type("usage", (), {"free": 600_000})  # twice the file, but not 2.2 times
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: free)
    for size in (len(BODY), None):
        with pytest.raises(DownloadError, match="GB are free"):
            download("good", size=size)
    assert part.stat().st_size == 0
    free.free = 700_000
    download("good")


def test_foreign_file_in_its_place_is_left_alone(download, part):
    part.with_suffix("").write_bytes(b"mine")
    with pytest.raises(DownloadError, match="not the published file .*4 bytes"):
        download("good")
    assert part.with_suffix("").read_bytes() == b"mine"


# --- from archive to folder ----------------------------------------------------------------------


def make_zip(path, entries, mode=0):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, mode << 16
            archive.writestr(info, content)


def make_tar(path, entries, kind=tarfile.REGTYPE, target=""):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(content)
            archive.addfile(info, io.BytesIO(content))


def card(archive: Path, **more):
    one = {"file": archive.name, "unpacks_to": "Top", "limit": 1_000_000, **more}
    return {"folder": "Top", "by_hand": "Put it into {downloads}.", "archives": [one]}


@pytest.fixture
def archive(tmp_path):
    """Where an archive is put by hand."""
    (tmp_path / "root" / "downloads").mkdir(parents=True)
    return tmp_path / "root" / "downloads" / "x.archive"


@pytest.fixture
def install(archive):
    def install(check=lambda _: None, **more):
        root = archive.parent.parent
        return fetch.install("top", card(archive, **more), root, check, progress=False)

    return install


GOOD = [("Top/a.txt", b"a" * 1000), ("Top/deep/b.txt", b"b"), ("Top/c.txt", b"")]


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("with_filters", [True, False])
def test_unpacks_what_was_put_there_by_hand(archive, install, make, with_filters, monkeypatch):
    """Also on Python 3.11.2, that of Debian 12, whose tarfile has no extraction filters."""
    if not with_filters:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
        monkeypatch.delattr(tarfile, "FilterError", raising=False)
    with pytest.raises(DownloadError, match="by hand.*x.archive is missing.*Put it into"):
        install()
    make(archive, GOOD)
    home = install()
    assert {(str(p.relative_to(home.parent)), p.read_bytes()) for p in home.rglob("*.*")} == {*GOOD}
    assert install() == home


NOISE = [("Top/noise", BODY)]
EVIL = {
    "parent": lambda p: make_zip(p, [*GOOD, ("../evil", b"x")]),
    "parent in tar": lambda p: make_tar(p, [*GOOD, ("Top/../../evil", b"x")]),
    "absolute": lambda p: make_zip(p, [("/tmp/sobook-evil", b"x")]),
    "absolute in tar": lambda p: make_tar(p, [("/tmp/sobook-evil", b"x")]),
    "symlink": lambda p: make_tar(p, [("link", b"")], tarfile.SYMTYPE, "../.."),
    "symlink in zip": lambda p: make_zip(p, [("link", b"../..")], stat.S_IFLNK | 0o777),
    "hard link": lambda p: make_tar(p, [("link", b"")], tarfile.LNKTYPE, "../secret"),
    "device": lambda p: make_tar(p, [("null", b"")], tarfile.CHRTYPE),
    "pipe": lambda p: make_tar(p, [("pipe", b"")], tarfile.FIFOTYPE),
    "bomb": lambda p: make_zip(p, [("zeros", bytes(10**7))]),
    "bomb in tar": lambda p: make_tar(p, [("zeros", bytes(10**7))]),
    "many empty": lambda p: make_zip(p, [(f"{i}", b"") for i in range(3000)]),
    "file as folder": lambda p: make_zip(p, [("a", b"1"), ("a/b", b"2")]),
    "not one": lambda p: p.write_bytes(b"<html>"),
    "cut off": lambda p: damage(make_tar, p, lambda data: data[:150_000]),
    "cut off zip": lambda p: damage(make_zip, p, lambda data: data[:150_000]),
    "flipped bits": lambda p: damage(make_zip, p, lambda data: data.replace(BODY[:50], bytes(50))),
}


def damage(make, path, change):
    make(path, NOISE)
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("evil", EVIL)
def test_hostile_or_damaged_archives_are_refused(archive, install, evil):
    EVIL[evil](archive)
    with pytest.raises(DatasetError, match="is not safe|is damaged") as caught:
        install()
    assert "\n" not in str(caught.value)
    assert left_in(archive.parent.parent) == {"downloads"}
    assert left_in(archive.parent.parent.parent) == {"root"}
    assert not Path("/tmp/sobook-evil").exists()


def left_in(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.suffix != ".lock"}


def test_install_leaves_nothing_of_a_wrong_archive(archive, install):
    def refuse(home):
        raise ValueError("too few")

    make_tar(archive, GOOD)
    with pytest.raises(ValueError, match="too few"):
        install(refuse)
    with pytest.raises(DatasetError, match="holds no folder Other"):
        install(unpacks_to="Other")
    assert left_in(archive.parent.parent) == {"downloads"}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:9/x.tgz", "ConnectionError .*online.*Put it into"),
        ("http://no-such-host.invalid/x.tgz", "ConnectionError .*online.*Put it into"),
        ("nowhere", "MissingSchema.*Put it into"),
    ],
)
def test_unreachable_source_is_asked_once_and_tells_the_way_by_hand(
    install, monkeypatch, url, words
):
    monkeypatch.setattr(fetch.time, "sleep", lambda _: pytest.fail("asked again"))
    with pytest.raises(DownloadError, match=words):
        install(url=url)


def test_wrong_proxy_is_asked_once(install, monkeypatch):
    monkeypatch.setattr(fetch.time, "sleep", lambda _: pytest.fail("asked again"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="ProxyError .*is its proxy right"):
        install(url="http://example.invalid/x.tgz")


def test_connection_lost_midway_is_tried_again(download, server, part, monkeypatch):
    """Once something has arrived, a moment without network is no reason to give up."""
    answers, get = [True, False, True], fetch.requests.get

    def lost(url, **options):
        return get(url if answers.pop(0) else "http://127.0.0.1:9/x", **options)

    monkeypatch.setitem(ANSWERS, "breaks-once", [{"upto": 200_000}, {}])
    monkeypatch.setattr(fetch.requests, "get", lost)
    download("breaks-once")
    assert answers == []


@pytest.mark.parametrize("where", ["fetching", "unpacking"])
def test_full_disk_is_one_sentence_and_leaves_nothing_half_done(
    install, archive, server, monkeypatch, where
):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if where == "fetching":
        monkeypatch.setattr(fetch, "_bar", full)
    else:
        make_tar(archive, GOOD)
        monkeypatch.setattr(fetch.shutil, "copyfileobj", full)
    with pytest.raises(SobookError, match="Top could not be written .*No space left.*make room"):
        install(url=server.url + "good")
    assert left_in(archive.parent.parent) == {"downloads"}


@pytest.fixture
def small_sop(server, tmp_path):
    """A benchmark of 40 photographs in Stanford Online Products' layout, slowly served."""
    rng = random.Random(1)
    entries = []
    for number, name in enumerate(("train", "test")):
        lines = ["image_id class_id super_class_id path"]
        for i in range(20):
            path = f"chair_final/{number}{i // 2}_{i % 2}.JPG"
            lines.append(f"{i + 1 + 20 * number} {i // 2 + 1 + 10 * number} 1 {path}")
            entries.append((f"Stanford_Online_Products/{path}", rng.randbytes(80_000)))
        text = "\r\n".join(lines).encode()
        entries.append((f"Stanford_Online_Products/Ebay_{name}.txt", text))
    make_tar(tmp_path / "x.tgz", entries)
    server.body = (tmp_path / "x.tgz").read_bytes()
    known = {"size": len(server.body), "sha256": hashlib.sha256(server.body).hexdigest()}
    name, split = "Stanford_Online_Products", {"images": 20, "classes": 10}
    about = card(tmp_path / "x.tgz", unpacks_to=name, url=server.url + "slow", limit=10**8, **known)
    return {**about, "folder": name, "splits": {"train": split, "test": split}}, dict(entries)


def test_prepare_finishes_what_a_killed_one_left(small_sop, server, tmp_path, monkeypatch):
    """A part, and a folder half unpacked: the deterministic twin of the test below."""
    about, content = small_sop
    monkeypatch.setattr(benchmarks, "cards", lambda: {"sop": about})
    root, size = tmp_path / "root", about["archives"][0]["size"]
    (root / "downloads").mkdir(parents=True)
    (root / "downloads" / "x.tgz.part").write_bytes(server.body[: size // 2])
    half = root / ".sop.unpacking" / "Stanford_Online_Products"
    half.mkdir(parents=True)
    (half / "Ebay_train.txt").write_bytes(b"half a li")
    home = image_sets.prepare("sop", root, progress=False)
    assert {path.name for path in root.iterdir()} == {home.name, "downloads", ".sop.lock"}
    assert {str(p.relative_to(root)): p.read_bytes() for p in home.rglob("*.*")} == content


@pytest.mark.slow
def test_prepare_killed_twenty_times_finishes_each_time(small_sop, tmp_path):
    """Kills at random moments of fetching, unpacking and checking; then the next call finishes."""
    from tests import processes

    about, content = small_sop
    rng, kills, begun = random.Random(5), 0, 0
    while kills < 20:
        root = tmp_path / f"root{kills}"
        home = root / "Stanford_Online_Products"
        while processes.killed_at(
            processes.start_preparing("sop", root, about), rng.uniform(0.02, 0.6)
        ):
            kills += 1
            found = len(list(home.rglob("*.*")))
            assert found in (0, len(content))
            begun += any(root.rglob("*.part")) or (root / ".sop.unpacking").exists()
        assert {path.name for path in root.iterdir()} == {home.name, "downloads", ".sop.lock"}
        assert {str(p.relative_to(root)): p.read_bytes() for p in home.rglob("*.*")} == content
    assert begun >= 5  # the moments were not all before the start or after the end
