"""Fetching against a local server with every fault we know of, and unpacking hostile archives."""

import hashlib
import http.server
import io
import os
import random
import socket
import stat
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest

from sobook.data import benchmarks, fetch, image_sets
from sobook.errors import DatasetError, DownloadError

BODY = random.Random(0).randbytes(300_000)
MD5 = hashlib.md5(BODY).hexdigest()
SHA256 = hashlib.sha256(BODY).hexdigest()
KNOWN = {"size": len(BODY), "md5": MD5, "sha256": SHA256}


class Faulty(http.server.BaseHTTPRequestHandler):
    """Serves BODY; the path names the fault. Requests are logged in `server.log`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        fault = self.path.strip("/")
        self.server.log.append((fault, self.headers.get("Range")))
        count = sum(one == fault for one, _ in self.server.log)
        self.close_connection = True
        getattr(self, fault.replace("-", "_"))(count)

    def answer(self, code, body=b"", length=None, **headers):
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def serve(self, upto=None, body=BODY, tag='"v1"'):
        """As a good server does, Range and If-Range included; `upto` bytes, then hang up."""
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if self.headers.get("If-Range") not in (None, tag):
            start = 0
        if start >= len(body):
            return self.answer(416, Content_Range=f"bytes */{len(body)}")
        rest = body[start:]
        headers = {"ETag": tag}
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self.answer(206 if start else 200, rest[:upto], len(rest), **headers)

    def good(self, count):
        self.serve()

    def drops_midway(self, count):
        self.serve(upto=100_000)

    def ignores_range(self, count):
        self.answer(200, BODY[:100_000] if count == 1 else BODY, len(BODY))

    def wrong_bytes(self, count):
        self.serve(body=bytes(len(BODY)))

    def changed_since(self, count):
        if count == 1:
            self.serve(upto=100_000, body=bytes(len(BODY)))
        else:
            self.serve(tag='"v2"')

    def truncated(self, count):
        self.answer(200, BODY[:200_000])  # and says so: it is a shorter file

    def missing(self, count):
        self.answer(404)

    def login(self, count):
        self.answer(403)

    def busy(self, count):
        if count == 1:
            self.answer(429, Retry_After="1")
        else:
            self.serve()

    def very_busy(self, count):
        self.answer(429, Retry_After="3600")

    def fails_twice(self, count):
        if count < 3:
            self.answer(500)
        else:
            self.serve()

    def page(self, count):
        text = b"<html><head><title>Confirm your download</title></head></html>"
        self.answer(200, text, Content_Type="text/html; charset=utf-8")

    def page_in_disguise(self, count):
        self.answer(200, b"<!DOCTYPE html><html>" + b" " * (len(BODY) - 21))

    def loop(self, count):
        self.answer(302, Location="/loop")

    def stalls(self, count):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:1000])
        self.wfile.flush()
        self.server.over.wait(5)

    def stalls_once(self, count):
        if count == 1:
            self.stalls(count)
        else:
            self.serve()

    def unsized(self, count):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(BODY)

    def slow(self, count):
        """For the kill test: the archive in small pieces; `server.body` is set there."""
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        body = self.server.body
        headers = {"ETag": '"v1"', "Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        self.answer(206, b"", len(body) - start, **headers)
        for i in range(start, len(body), 1 << 16):
            self.wfile.write(body[i : i + (1 << 16)])
            time.sleep(0.01)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # clients that hang up are part of the tests


def loopback_is_up() -> bool:
    """False in a network namespace without interfaces, where not even 127.0.0.1 answers."""
    with socket.socket() as listener, socket.socket() as caller:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        caller.settimeout(2)
        try:
            caller.connect(listener.getsockname())
        except OSError:
            return False
    return True


@pytest.fixture
def server():
    if not loopback_is_up():
        pytest.skip("127.0.0.1 cannot be reached (no network interface is up)")
    server = Server(("127.0.0.1", 0), Faulty)
    server.log, server.over = [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name, value in {"TRIES": 3, "FIRST_PAUSE": 0.01, "LONGEST_PAUSE": 2, "STALL": 10}.items():
        monkeypatch.setattr(fetch, f"_{name}", value)


@pytest.fixture
def part(tmp_path):
    """Where a part of the file would lie."""
    (tmp_path / "in").mkdir()
    return tmp_path / "in" / "file.bin.part"


@pytest.fixture
def download(server, part, monkeypatch):
    """Fetch from the faults named, in that order, and see that the file arrived as it should."""

    def download(*faults, **known):
        if "stall" in str(faults):  # only there, or a busy machine would seem to stall
            monkeypatch.setattr(fetch, "_STALL", 0.4)
        urls, dest = [server.url + fault for fault in faults], part.with_suffix("")
        fetch.fetch(urls, dest, **{**KNOWN, **known}, progress=False)
        assert dest.read_bytes() == BODY
        assert sorted(dest.parent.iterdir()) == [dest]  # no part is left
        return [fault for fault, _ in server.log]

    return download


def test_plain_download_then_nothing_to_do(download):
    assert download("good") == ["good"]
    assert download("good") == ["good"]


def test_resumes_what_broke_off(download, server):
    download("drops-midway")
    starts = [int((asked or "bytes=0-")[6:-1]) for _, asked in server.log]
    assert starts == sorted(starts) and len(starts) == 4
    assert all(start >= i * 80_000 for i, start in enumerate(starts))  # hardly a byte twice


def test_resumes_the_part_of_an_earlier_run(download, server, part):
    part.write_bytes(BODY[:123_456])
    download("good")
    assert server.log == [("good", "bytes=123456-")]


def test_complete_part_is_not_fetched_again(download, part):
    part.write_bytes(BODY)
    assert download("missing") == []


@pytest.mark.parametrize(
    ("content", "size"),
    [(bytes(100_000), len(BODY)), (BODY + b"more", None)],
    ids=["wrong", "long"],
)
def test_a_part_of_another_file_is_thrown_away(download, part, content, size):
    part.write_bytes(content)
    assert download("good", size=size) == ["good"] * 2


@pytest.mark.parametrize("fault", ["ignores-range", "stalls-once", "busy"])
def test_second_request_succeeds(download, fault):
    start = time.monotonic()
    assert download(fault)[:2] == [fault] * 2
    assert fault != "busy" or time.monotonic() - start >= 1  # what Retry-After asked for


def test_passing_errors_are_retried(download):
    assert download("fails-twice") == ["fails-twice"] * 3


def test_file_changed_between_two_requests(download):
    """Without a checksum only If-Range notices."""
    assert download("changed-since", md5=None, sha256=None) == ["changed-since"] * 2


def test_server_that_names_no_length(download):
    assert download("unsized", size=None) == ["unsized"]


def test_server_that_calls_the_whole_file_a_part(download, server):
    server.body = BODY
    assert download("slow") == ["slow"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("missing", "answered 404"),
        ("login", "answered 403 Forbidden: it wants a login"),
        ("page", "served a web page.*browser"),
        ("page-in-disguise", "served a web page"),
        ("loop", "redirects"),
        ("truncated", "200,000 bytes, not the 300,000"),
        ("wrong-bytes", "md5"),
        ("stalls", "sent nothing for 0.4 s"),
        ("very-busy", "answered 429"),
    ],
)
def test_failure_says_why_and_the_next_mirror_is_tried(download, fault, words, part):
    with pytest.raises(DownloadError, match=words):
        download(fault)
    assert not part.with_suffix("").exists()
    assert download(fault, "good")[-1] == "good"


@pytest.mark.parametrize("fault", ["wrong-bytes", "truncated", "page-in-disguise"])
def test_next_mirror_where_no_size_is_published(download, fault):
    assert download(fault, "good", size=None)[-1] == "good"


def test_nobody_there(tmp_path):
    with pytest.raises(DownloadError, match="could not be reached"):
        fetch.fetch(["http://127.0.0.1:9/x"], tmp_path / "x", progress=False)


def test_disk_is_checked_before_anything_is_asked(download, server, monkeypatch):
    free = type("usage", (), {"free": 600_000})  # twice the file, but not 2.2 times
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: free)
    with pytest.raises(DownloadError, match="GB are free"):
        download("good")
    assert server.log == []
    with pytest.raises(DownloadError, match="GB are free"):
        download("good", size=None)  # only the answer tells the size
    free.free = 700_000
    download("good")


def test_foreign_file_in_its_place_is_left_alone(download, part):
    part.with_suffix("").write_bytes(b"mine")
    with pytest.raises(DownloadError, match="not the published file .*4 bytes"):
        download("good")
    assert part.with_suffix("").read_bytes() == b"mine"


# --- unpacking -----------------------------------------------------------------------------------


def make_zip(path, entries, mode=None):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if mode:
                info.external_attr = mode << 16
            archive.writestr(info, content)
    return path


def make_tar(path, entries, kind=None, target=""):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            if kind:
                info.type, info.linkname = kind, target
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


GOOD = [("top/a.txt", b"a" * 1000), ("top/deep/b.txt", b"b"), ("c.txt", b"")]


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_unpacks(tmp_path, make):
    archive = make(tmp_path / "x", GOOD)
    folder = fetch.unpack(archive, tmp_path / "out", limit=10**4, progress=False)
    for name, content in GOOD:
        assert (folder / name).read_bytes() == content


EVIL = {
    "parent": lambda p: make_zip(p, [*GOOD, ("../evil", b"x")]),
    "parent in tar": lambda p: make_tar(p, [*GOOD, ("top/../../evil", b"x")]),
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
    "not one": lambda p: p.write_bytes(b"<html>") and p,
    "cut off": lambda p: cut(make_tar(p, [("noise", BODY)]), 150_000),
    "cut off zip": lambda p: cut(make_zip(p, [("noise", BODY)]), 150_000),
    "flipped bits": lambda p: flip(make_zip(p, [("noise", BODY)]), 150_000),
}


def cut(path, length):
    os.truncate(path, length)
    return path


def flip(path, where):
    data = bytearray(path.read_bytes())
    data[where] ^= 255
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("evil", EVIL)
def test_hostile_or_damaged_archives_are_refused(tmp_path, evil):
    (tmp_path / "secret").write_text("s")
    archive = EVIL[evil](tmp_path / "evil-archive")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DatasetError, match="is not safe|is damaged") as caught:
        fetch.unpack(archive, tmp_path / "out", limit=1_000_000, progress=False)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
    assert not Path("/tmp/sobook-evil").exists()


# --- from archive to folder ----------------------------------------------------------------------


def card(url, archive: bytes, **more):
    sums = {"size": len(archive), "md5": hashlib.md5(archive).hexdigest()}
    one = {"file": "x.tgz", "urls": [url], "unpacks_to": "Top", "limit": 10**8, **sums, **more}
    return {"folder": "Top", "by_hand": "Put x.tgz into {downloads}.", "archives": [one]}


def check(home: Path) -> None:
    if len(list(home.iterdir())) != 30:
        raise ValueError(f"{home} is not whole")


@pytest.fixture
def archive(tmp_path):
    rng = random.Random(1)
    entries = [(f"Top/{i}.bin", rng.randbytes(100_000)) for i in range(30)]
    return make_tar(tmp_path / "x.tgz", entries).read_bytes()


def test_install_from_an_archive_put_there_by_hand(tmp_path, archive):
    root = tmp_path / "root"
    with pytest.raises(DownloadError, match=r"by hand.*x\.tgz is missing.*Put x\.tgz into"):
        fetch.install("top", card("", archive, urls=[]), root, check, progress=False)
    (root / "downloads").mkdir()
    (root / "downloads" / "x.tgz").write_bytes(archive)
    home = fetch.install("top", card("", archive, urls=[]), root, check, progress=False)
    assert home == root / "Top" and len(list(home.iterdir())) == 30
    assert fetch.install("top", card("", archive, urls=[]), root, check, progress=False) == home


def test_install_leaves_nothing_of_a_wrong_archive(tmp_path, archive):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "x.tgz").write_bytes(archive)

    def refuse(home):
        raise ValueError("too few")

    with pytest.raises(ValueError, match="too few"):
        fetch.install("top", card("", archive), tmp_path, refuse, progress=False)
    with pytest.raises(DatasetError, match="holds no folder Other"):
        wrong = card("", archive, unpacks_to="Other")
        fetch.install("top", wrong, tmp_path, check, progress=False)
    left = {path.name for path in tmp_path.iterdir()} - {"x.tgz", ".top.lock"}
    assert left == {"downloads"}


def test_unreachable_source_tells_the_way_by_hand(tmp_path, archive):
    with pytest.raises(DownloadError, match="could not be reached.*Put x.tgz into"):
        url = "http://127.0.0.1:9/x.tgz"
        fetch.install("top", card(url, archive), tmp_path, check, progress=False)


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
    server.body = make_tar(tmp_path / "x.tgz", entries).read_bytes()
    split = {"images": 20, "classes": 10}
    about = card(server.url + "slow", server.body, unpacks_to="Stanford_Online_Products")
    about |= {"folder": "Stanford_Online_Products", "images": 40, "classes": 20}
    return {**about, "splits": {"train": split, "test": split}}, dict(entries)


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
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a POSIX signal")
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
