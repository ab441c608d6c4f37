"""Pictures and folders as phones, cameras, scanners, Macs and network drives leave them."""

import hashlib
import io
import os
import struct
import sys
import unicodedata
import warnings

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageCms

from sobook.data import load, load_splits, pictures
from sobook.data.image_sets import class_folders
from sobook.errors import DatasetError, ImageError, SobookError
from tests.data.conftest import picture, save

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def near(path, expected, by=6) -> bool:
    """The middle of a picture has that color."""
    image = pictures.read_image(path)
    assert image.mode == "RGB"
    color = image.getpixel((image.width // 2, image.height // 2))
    return max(abs(a - b) for a, b in zip(color, expected, strict=True)) <= by


class TestReadImage:
    @pytest.mark.parametrize("orientation", range(10))
    @pytest.mark.parametrize("suffix", [".tif", ".png"])
    def test_every_orientation_is_undone_once(self, tmp_path, rng, orientation, suffix):
        """Pillow turns a TIFF when it is decoded: not twice. 0 and 9 do not exist."""
        upright = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
        stored = {
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.transpose(1, 0, 2),
            6: np.rot90(upright, 1),
            7: upright[::-1, ::-1].transpose(1, 0, 2),
            8: np.rot90(upright, -1),
        }.get(orientation, upright)
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = save(tmp_path / f"turned{suffix}", np.ascontiguousarray(stored), exif=exif)
        np.testing.assert_array_equal(np.asarray(pictures.read_image(file)), upright)

    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
    def test_broken_exif_does_not_matter(self, tmp_path, suffix):
        """A signed number where none may be: Pillow could not write the block back."""
        entries = struct.pack("<HHII", 0x112, 3, 1, 6) + struct.pack("<HHII", 0x11A, 10, 1, 38)
        exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<Iii", 0, -1, 0)
        file = save(tmp_path / f"phone{suffix}", np.zeros((60, 40, 3), np.uint8), exif=exif)
        assert pictures.read_image(file).size == (60, 40)

    @pytest.mark.parametrize(
        ("name", "image", "options", "expected"),
        [
            ("gray.png", Image.new("L", (9, 9), 77), {}, (77,) * 3),
            ("bits.png", Image.new("1", (9, 9), 1), {}, WHITE),
            ("deep.png", Image.fromarray(np.full((9, 9), 257 * 77, np.uint16)), {}, (77,) * 3),
            ("deep.tif", Image.fromarray(np.full((9, 9), 257 * 77, np.int32)), {}, (77,) * 3),
            ("palette.png", Image.new("RGB", (9, 9), RED).quantize(2), {}, RED),
            ("inks.jpg", Image.new("CMYK", (32, 32), (0, 255, 255, 0)), {"quality": 95}, RED),
            ("inks.tif", Image.new("CMYK", (9, 9), (0, 255, 255, 0)), {}, RED),
            ("clear.png", Image.new("RGBA", (9, 9), (9, 9, 9, 0)), {}, WHITE),
            ("half.png", Image.new("RGBA", (9, 9), (0, 0, 0, 128)), {}, (127,) * 3),
            ("clear gray.png", Image.new("LA", (9, 9), (0, 0)), {}, WHITE),
            ("key.png", Image.new("RGB", (9, 9), RED), {"transparency": RED}, WHITE),
            ("frames.gif", Image.new("RGB", (9, 9), RED), {"append_images": [BLACK]}, RED),
            ("pages.tif", Image.new("RGB", (9, 9), RED), {"append_images": [BLACK]}, RED),
        ],
    )
    def test_any_mode_becomes_8_bit_rgb(self, tmp_path, name, image, options, expected):
        if "append_images" in options:
            options = {"save_all": True, "append_images": [Image.new("RGB", (9, 9), BLACK)]}
        image.save(tmp_path / name, **options)
        assert near(tmp_path / name, expected)

    def test_lab(self, tmp_path):
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = Image.new("RGB", (8, 8), (30, 90, 200))
        ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB").save(tmp_path / "lab.tif")
        assert near(tmp_path / "lab.tif", (30, 90, 200))

    def test_the_content_decides_and_not_the_name(self, tmp_path):
        Image.new("RGB", (8, 8), RED).save(tmp_path / "a.jpg", "PNG")
        assert near(tmp_path / "a.jpg", RED)

    @pytest.mark.parametrize("kind", ["jpg", "png", "webp", "gif", "tif"])
    def test_cut_off_files_are_errors(self, tmp_path, rng, kind):
        file = save(tmp_path / f"cut.{kind}", rng.integers(0, 255, (40, 60, 3), dtype=np.uint8))
        file.write_bytes(file.read_bytes()[:-60])
        with pytest.raises(ImageError, match=f"cut.{kind}"):
            pictures.read_image(file)

    def test_what_is_missing_or_no_picture_is_named(self, tmp_path, monkeypatch):
        with pytest.raises(ImageError, match="a.jpg.*No such file"):
            pictures.read_image(tmp_path / "a.jpg")
        (tmp_path / "a.jpg").write_bytes(b"<!DOCTYPE html><html>404")
        for source in (tmp_path / "a.jpg", io.BytesIO(b"nothing")):
            with pytest.raises(ImageError, match="cannot identify"):
                pictures.read_image(source)
        save(tmp_path / "a.tif", np.full((9, 9), 0.5, np.float32))
        with pytest.raises(ImageError, match="floats"):
            pictures.read_image(tmp_path / "a.tif")
        save(tmp_path / "a.png", np.zeros((300, 300), np.uint8))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)  # Pillow refuses twice as many
        with pytest.raises(ImageError, match="bomb"):
            pictures.read_image(tmp_path / "a.png")

    @settings(max_examples=200)
    @given(st.data())
    def test_damaged_bytes_are_read_or_refused_in_one_sentence(self, data):
        kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"]))
        buffer = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        pattern = np.arange(20 * 16 * 3, dtype=np.uint8).reshape(20, 16, 3)
        Image.fromarray(pattern).save(buffer, kind, **({} if kind == "PPM" else {"exif": exif}))
        content = bytearray(buffer.getvalue())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
        try:
            assert pictures.read_image(io.BytesIO(content)).mode == "RGB"
        except SobookError as error:
            assert "\n" not in str(error)


class TestDigests:
    def test_small_files_are_hashed_in_full(self, good):
        file = good / "a/0.png"
        assert pictures.digests([file])[0] == hashlib.sha256(file.read_bytes()).hexdigest()

    def test_large_files_are_hashed_by_size_and_samples(self, tmp_path, own_cache, rng):
        content = bytearray(rng.bytes(3_000_000))
        (tmp_path / "a.jpg").write_bytes(content)
        samples = [content[:256_000], content[1_372_000:1_628_000], content[-256_000:]]
        expected = hashlib.sha256(b"3000000" + b"".join(samples)).hexdigest()
        assert pictures.digests([tmp_path / "a.jpg"])[0] == expected

    def test_a_picture_is_read_again_only_when_it_has_changed(self, good, own_cache, opened):
        paths = sorted(good.rglob("*.png"))
        first = pictures.digests(paths)
        assert len(set(first)) == 16 and {*paths} <= {*opened}
        opened.clear()
        assert pictures.digests([*paths, *paths]) == first * 2
        assert not opened
        picture(paths[0], (9, 9))
        opened.clear()
        second = pictures.digests(paths)
        assert second[0] != first[0] and second[1:] == first[1:]
        assert [path for path in opened if path in paths] == [paths[0]]

    def test_pixels_identify_a_picture_and_neither_name_size_nor_date(self, tmp_path, own_cache):
        first, second = (tmp_path / folder / "car/0.bmp" for folder in ("one", "two"))
        for path in (first, second):
            picture(path)
        stat = os.stat(first)
        os.utime(second, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        before = pictures.digests([first, second])
        first.write_bytes(second.read_bytes())  # as `cp -p` does it
        os.utime(first, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert os.stat(first).st_size == stat.st_size == os.stat(second).st_size
        after = pictures.digests([first, second])
        assert before[0] != before[1] and after == [before[1]] * 2
        moved = first.rename(tmp_path / "moved.jpeg")
        assert pictures.digests([moved]) == [before[1]]

    def test_a_damaged_or_unwritable_record_is_no_trouble(self, good, own_cache):
        for content in (b"", b"\xff", b"{"):
            own_cache.mkdir(parents=True, exist_ok=True)
            (own_cache / "digests.json").write_bytes(content)
            pictures._record.cache_clear()
            assert len(pictures.digests([good / "a/0.png"])[0]) == 64
        with pytest.raises(ImageError, match="No such file"):
            pictures.digests([good / "gone.png"])[0]


def read(root, split="train"):
    """A split of a folder; the warning has all notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        part = load("folder", split, root)
    assert [str(w.message) for w in caught] == (
        [f"folder: {'; '.join(part.notes)}"] if part.notes else []
    )
    return part


class TestFolder:
    def test_nothing_odd_has_no_notes(self, good):
        train, test = read(good), read(good, "test")
        assert train.class_names == tuple("abcd") and test.class_names == tuple("efgh")
        assert len(train) == len(test) == 8 and train.notes == test.notes == ()

    def test_what_is_left_out_is_counted_and_named_by_reason(self, good, rng):
        for i in range(12):
            (good / "a" / f"phone{i:02}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
        for name in ("b/raw.cr2", "b/notes.txt", "c/README", "c/empty.jpg", "c/page.png"):
            (good / name).write_bytes(b"<html>" if name == "c/page.png" else b"")
        cut = save(good / "d/cut.jpg", rng.integers(0, 255, (90, 90, 3), dtype=np.uint8))
        cut.write_bytes(cut.read_bytes()[:-200])
        picture(good / "loose.png")
        (good / "NOTES.txt").write_text("taken in May\nall of one garden\n")
        for split in ("train", "test"):  # of the whole folder, whatever part is read
            own, more, heic, *others = read(good, split).notes
            assert (own, more) == ("taken in May", "all of one garden")
            assert heic.startswith("12 left out (no decoder for .heic files): a/phone00.HEIC, a/p")
            assert heic.endswith("a/phone09.HEIC and 2 more")
            assert others == [
                "1 left out (no decoder for .txt files): b/notes.txt",
                "1 left out (no decoder for .cr2 files): b/raw.cr2",
                "1 left out (no decoder for nameless files): c/README",
                "2 left out (cannot be decoded: cannot identify image file): c/empty.jpg, "
                "c/page.png",
                "1 left out (cannot be decoded: image file is truncated): d/cut.jpg",
                "1 left out (not in a class folder): loose.png",
            ]

    def test_a_folder_is_walked_once_for_all_parts(self, good, monkeypatch):
        walks = []
        walk = os.walk
        monkeypatch.setattr(os, "walk", lambda root, **how: walks.append(root) or walk(root, **how))
        parts = load_splits("folder", good)
        assert {name: len(part) for name, part in parts.items()} == {"train": 8, "test": 8}
        assert walks == [good]

    def test_pictures_are_decoded_once(self, good, monkeypatch):
        decoded = []
        decode = pictures._decode
        monkeypatch.setattr(pictures, "_decode", lambda path: decoded.append(path) or decode(path))
        read(good), read(good)
        assert len(decoded) == 16
        (good / "a/0.png").write_bytes(b"nothing")
        assert len(read(good)) == 7 and len(decoded) == 17

    def test_clutter_and_our_own_cache_are_passed_over(self, good, monkeypatch):
        monkeypatch.setenv("SOBOOK_DATA", str(good))
        for name in (".DS_Store", "._0.png", "@eaDir/0.png/SYNO.jpg", "__MACOSX/x.png", ".git/x"):
            (good / "a" / name).parent.mkdir(parents=True, exist_ok=True)
            (good / "a" / name).write_bytes(b"x")
        for _ in range(2):
            assert len(read(good)) == 8 and read(good).notes == ()
            assert (good / "cache").is_dir()

    def test_links(self, good, tmp_path):
        elsewhere = picture(tmp_path / "elsewhere/x/0.png")
        (good / "a/gone.jpg").symlink_to("/nowhere/picture.jpg")
        (good / "a/itself.jpg").symlink_to("itself.jpg")
        (good / "a/up").symlink_to(good)
        (good / "b/again").symlink_to(good / "a")
        (good / "linked").symlink_to(elsewhere.parent)
        os.mkfifo(good / "a/pipe.jpg")  # opening it would wait for a writer
        assert read(good, "test").class_names == ("f", "g", "h", "linked")
        assert read(good).notes == (
            "3 left out (not a file, or a link to nothing): a/gone.jpg, a/itself.jpg, a/pipe.jpg",
            "2 left out (a folder that is read already, through a link): a/up, b/again",
        )

    def test_what_may_not_be_read_is_left_out(self, good, monkeypatch):
        scandir, image_open = os.scandir, Image.open

        def refuse(path, *args):
            if str(path).endswith(("a/1.png", "b")):
                raise PermissionError(13, "Permission denied", str(path))
            return (scandir if os.path.isdir(path) else image_open)(path, *args)

        monkeypatch.setattr(os, "scandir", refuse)
        monkeypatch.setattr(Image, "open", refuse)
        assert read(good).class_names == tuple("acde")
        assert read(good).notes == (
            "1 left out (cannot be decoded: Permission denied): a/1.png",
            "1 left out (Permission denied): b",
        )
        with pytest.raises(DatasetError, match="denied"):
            load("folder", "train", good / "b")

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse the names")
    def test_names_of_any_bytes(self, good):
        for name in (b"M\xfcll.png", b"line\nbreak.png", "\u202egnp.exe.png".encode(), b"-rf.png"):
            picture(good / "a" / os.fsdecode(name))
        (good / os.fsdecode(b"a/bad\n\xff.jpg")).write_bytes(b"")
        os.rename(good / "b", os.fsencode(good) + b"/b\xe9")
        for _ in range(2):  # also from what is on record
            pictures._record.cache_clear()
            train = read(good)
            assert len(train) == 12 and train.class_names == ("a", "b\udce9", "c", "d")
            assert train.notes[0].endswith(r": a/bad\n\udcff.jpg")

    def test_letters_composed_and_decomposed_are_one_class(self, good):
        (good / "a").rename(good / unicodedata.normalize("NFD", "é"))
        (good / "b").rename(good / "é")
        test = read(good, "test")
        assert read(good).num_classes + test.num_classes == 7
        assert test.class_names[-1] == "é" and (test.labels == 2).sum() == 4

    def test_copies_are_noted_and_inner_folders_belong_to_their_class(self, good):
        for name in ("a/copy.png", "e/leak.png"):
            (good / name).write_bytes((good / "a/0.png").read_bytes())
        picture(good / "b/inner/9.png")
        assert read(good).notes == (
            "exact copies of other pictures: 2, of which 1 in another folder: "
            "a/copy.png = a/0.png, e/leak.png = a/0.png",
        )
        assert (read(good).labels == 1).sum() == 3

    def test_a_split_given_as_folders(self, tmp_path, own_cache):
        for name in ("Train/a", "Train/b", "test/b", "test/c", "extra/z"):
            picture(tmp_path / "own" / name / "0.png")
        train, test = read(tmp_path / "own"), read(tmp_path / "own", "test")
        assert (train.class_names, test.class_names) == (tuple("ab"), tuple("bc"))
        assert "1 left out (not in a class folder): extra/z/0.png" in train.notes
        assert "share 1 classes" in train.notes[-1] and train.notes == test.notes

    def test_train_may_be_a_class(self, tmp_path, own_cache):
        names = ("bicycle", "bus", "car", "train", "tram", "truck")
        for name in names:
            picture(tmp_path / "roads" / name / "test/0.png")
        root, parts = tmp_path / "roads", load_splits("folder", tmp_path / "roads")
        assert parts["train"].class_names + parts["test"].class_names == names
        places = class_folders(root, sorted(root.rglob("*.png")))  # as the search index has them
        assert places == [("", name) for name in names]
        for part in ("train", "test"):  # as a class of a given split
            picture(tmp_path / "given" / part / "train/0.png")
        for part in load_splits("folder", tmp_path / "given").values():
            assert part.class_names == ("train",) and len(part) == 1

    def test_folders_that_cannot_be_split(self, tmp_path, good):
        for name in ("train/a", "train/b", "val/a"):
            picture(tmp_path / "own" / name / "0.png")
        (tmp_path / "empty/a").mkdir(parents=True)
        (tmp_path / "empty/a/0.heic").touch()
        for root, words in (
            (tmp_path / "own", "train and val"),
            (good / "a", "0 class folder.*at least 2"),
            (good.parent / "empty", "0 class folder.*no decoder for .heic"),
            (good / "nowhere", "no folder"),
            (None, "root="),
        ):
            with pytest.raises(DatasetError, match=words):
                load("folder", "train", root)
