"""Pictures and folders as phones, cameras, scanners, Macs and network drives leave them."""

import hashlib
import io
import os
import struct
import subprocess
import sys
import types
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, features

from sobook.data import image_sets, pictures, pixels
from sobook.data.image_sets import load
from sobook.errors import DatasetError, ImageError
from tests.data.conftest import save

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def exif_block(*entries: bytes, orientation: int = 6) -> bytes:
    """EXIF with an orientation and further entries, written by hand."""
    first = struct.pack("<HHII", 0x112, 3, 1, orientation)
    count = struct.pack("<H", 1 + len(entries))
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + count + first + b"".join(entries) + bytes(4)


def rational(tag: int, numbers: bytes) -> bytes:
    """An entry whose value lies behind the two entries, the end mark and the header."""
    return struct.pack("<HHII", tag, 10, 1, 38) + bytes(4) + numbers


# As in https://github.com/python-pillow/Pillow/issues/8965, 4037, 4665, 7839, 7340, 6123, 8348.
BROKEN_EXIF = {
    "signed rational": exif_block()[:14]
    + b"\2\0"
    + exif_block()[16:28]
    + struct.pack("<HHIIIii", 0x11A, 10, 1, 38, 0, -1, 0),
    "number too large": exif_block(struct.pack("<HHIi", 0x9203, 8, 1, -70000)),
    "byte for text": exif_block(struct.pack("<HHII", 0x010E, 1, 1, 7)),
    "value outside": exif_block(struct.pack("<HHII", 0x010F, 2, 4000, 2**31)),
    "endless directory": exif_block()[:-4] + struct.pack("<I", 8),
}


@pytest.fixture
def tall(rng):
    """A smooth (60, 40, 3) picture, dark above and light below."""
    return np.broadcast_to(np.linspace(0, 255, 60)[:, None, None], (60, 40, 3)).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def middle(path) -> tuple[int, int, int]:
    found = pictures.read_image(path)
    assert found.mode == "RGB"
    return found.getpixel((found.width // 2, found.height // 2))


def near(found, expected, by=3) -> bool:
    return max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= by


class TestExif:
    @pytest.mark.filterwarnings("ignore:Tag data larger")
    @pytest.mark.parametrize("kind", BROKEN_EXIF)
    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
    def test_what_cannot_be_rewritten_can_be_read_and_turned(self, tmp_path, tall, kind, suffix):
        """Only the orientation is needed; Pillow would write all of it anew."""
        file = save(tmp_path / f"phone{suffix}", tall, exif=BROKEN_EXIF[kind])
        found = np.asarray(pictures.read_image(file))
        assert found.shape == (40, 60, 3)
        assert found[:, 0].mean() > 240 > 15 > found[:, -1].mean()

    @pytest.mark.parametrize("content", [b"Exif\0\0", b"Exif\0\0Exif\0\0II*\0", b"nonsense" * 9])
    def test_no_exif_worth_the_name_turns_nothing(self, tmp_path, tall, content):
        file = save(tmp_path / "odd.jpg", tall, exif=content)
        assert pictures.read_image(file).size == (40, 60)

    @pytest.mark.parametrize("orientation", [0, 1, 9, 65535])
    def test_an_orientation_that_does_not_exist_turns_nothing(self, tmp_path, tall, orientation):
        file = save(tmp_path / "odd.jpg", tall, exif=exif_block(orientation=orientation))
        assert np.abs(np.asarray(pictures.read_image(file)).astype(int) - tall).max() < 8

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("suffix", [".tif", ".png"])
    def test_every_orientation_is_undone_once(self, tmp_path, rng, orientation, suffix):
        """A TIFF is turned by Pillow when it is decoded: not twice."""
        upright = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
        stored = {
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.transpose(1, 0, 2),
            6: np.rot90(upright, 1),
            7: upright[::-1, ::-1].transpose(1, 0, 2),
            8: np.rot90(upright, -1),
        }[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = save(tmp_path / f"turned{suffix}", np.ascontiguousarray(stored), exif=exif)
        np.testing.assert_array_equal(np.asarray(pictures.read_image(file)), upright)


AVIF = pytest.param(
    "a.avif", marks=pytest.mark.skipif(not features.check("avif"), reason="needs Pillow 11.3")
)


class TestModes:
    """Whatever the file holds: upright 8-bit RGB of the right color."""

    @pytest.mark.parametrize(
        ("array", "expected"),
        [
            (np.full((9, 9), 0.5, np.float32), 128),  # as scikit-image and ImageJ write it
            (np.full((9, 9), 1.0, np.float32), 255),
            (np.full((9, 9), 200.0, np.float32), 200),
            (np.full((9, 9), 257 * 100.0, np.float32), 100),
            (np.array([[0, 1e6, 2.55e6]], np.float32), 100),
            (np.array([[-5, 0.5, np.nan, np.inf, 1]], np.float32)[:, [0, 1, 4]], 128),
            (np.full((9, 9), np.nan, np.float32), 0),
            (np.full((9, 9), 257 * 77, np.int32), 77),
            (np.array([[0, 2**30, 2**31 - 1]], np.int32), 128),
            (np.full((9, 9), -7, np.int32), 0),
            (np.full((9, 9), 257 * 33, np.uint16), 33),
        ],
    )
    def test_floats_and_integers_of_16_and_32_bits(self, tmp_path, array, expected):
        Image.fromarray(array).save(tmp_path / "scan.tif")
        assert middle(tmp_path / "scan.tif") == (expected,) * 3

    def test_nan_and_infinity_are_black(self, tmp_path):
        array = np.array([[np.nan, np.inf, -np.inf, 1.0]], np.float32)
        Image.fromarray(array).save(tmp_path / "depth.tif")
        found = np.asarray(pictures.read_image(tmp_path / "depth.tif"))[0, :, 0]
        assert found.tolist() == [0, 0, 0, 255]

    @pytest.mark.parametrize("adobe", [True, False])
    def test_cmyk_jpeg_is_read_as_adobe_writes_it(self, tmp_path, adobe):
        """Inverted inks, with the marker or without, as browsers take them."""
        content = encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95)
        start = content.index(b"\xff\xee")
        length = int.from_bytes(content[start + 2 : start + 4], "big") + 2
        if not adobe:
            content = content[:start] + content[start + length :]
        (tmp_path / "print.jpg").write_bytes(content)
        assert near(middle(tmp_path / "print.jpg"), RED, 6)

    def test_cmyk_tiff_is_not_inverted(self, tmp_path):
        Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.tif")
        assert near(middle(tmp_path / "print.tif"), RED)

    def test_lab(self, tmp_path):
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        for color in (RED, (30, 90, 200), WHITE):
            image = ImageCms.profileToProfile(
                Image.new("RGB", (8, 8), color), srgb, lab, outputMode="LAB"
            )
            image.save(tmp_path / "lab.tif")
            assert near(middle(tmp_path / "lab.tif"), color, 6)

    @pytest.mark.parametrize(
        ("image", "options"),
        [
            (Image.new("LA", (8, 8), (0, 0)), {}),
            (Image.new("RGBA", (8, 8), (9, 9, 9, 0)), {}),
            (Image.new("RGB", (8, 8), RED).quantize(2), {"transparency": 0}),
            (
                Image.new("P", (8, 8), 0).convert("PA").convert("RGBA").quantize(2),
                {"transparency": b"\0"},
            ),
            (Image.new("RGB", (8, 8), RED), {"transparency": RED}),
            (Image.new("L", (8, 8), 7), {"transparency": 7}),
            (Image.new("1", (8, 8), 1), {}),
        ],
    )
    def test_what_is_transparent_is_white(self, tmp_path, image, options):
        image.save(tmp_path / "clear.png", **options)
        assert middle(tmp_path / "clear.png") == WHITE

    @pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif", "a.mpo", AVIF])
    def test_of_many_frames_or_pages_the_first(self, tmp_path, name):
        frames = [Image.new("RGB", (32, 32), color) for color in (RED, BLACK)]
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert near(middle(tmp_path / name), RED, 6)

    def test_the_content_decides_and_not_the_name(self, tmp_path):
        for kind in ("PNG", "GIF", "WEBP", "BMP", "TIFF"):
            (tmp_path / "a.jpg").write_bytes(encoded(Image.new("RGB", (8, 8), RED), kind))
            assert near(middle(tmp_path / "a.jpg"), RED, 6)

    @pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (20_000, 1), (7, 3)])
    def test_very_long_and_thin(self, tmp_path, own_cache, size):
        """1 × 10,000 pixels would become 256 × 2,560,000, two GB."""
        file = save(tmp_path / "strip.png", np.full((size[1], size[0], 3), 77, np.uint8))
        one = image_sets.ImageSet((file,), np.zeros(1, int), ("a",), "folder", "test")
        found = pixels.decode(one, 256, progress=False)[0]
        assert min(found.shape[:2]) == 256 and max(found.shape[:2]) <= 4096
        assert (found == 77).all()
        assert pixels.resize(Image.new("RGB", size), 256).size == found.shape[1::-1]
        for_training = pixels.decode(one, 336, enlarge=False, progress=False)[0]
        assert for_training.shape[:2] == size[::-1]

    def test_of_a_strip_the_middle_is_seen_as_before(self, rng):
        strip = Image.fromarray(rng.integers(0, 255, (4, 400, 3), dtype=np.uint8))
        whole = np.asarray(strip.resize((3200, 32), Image.Resampling.BICUBIC))
        cut = np.asarray(pixels.resize(strip, 32))
        assert cut.shape == (32, 512, 3)
        np.testing.assert_array_equal(cut[:, 64:-64], whole[:, 1344 + 64 : 1344 + 512 - 64])

    def test_nothing_that_is_not_a_file_is_opened(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for a writer
        for path in (tmp_path / "pipe.jpg", tmp_path, "/dev/zero"):
            with pytest.raises(ImageError, match="cannot be read \\(not a file\\)"):
                pictures.read_image(path)
        assert pictures.header_sizes([tmp_path / "pipe.jpg"]) == []

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"", "empty file"),
            (bytes(5000), "begins with zeros: copied or downloaded in part"),
            (b"<!DOCTYPE html><html>404", "a web page or other text"),
            (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer: git lfs pull"),
            (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC: pip install pillow-heif"),
            (b"\0\0\0\x18ftypisom\0\0\0\0", "video: save frames of it as pictures"),
            (b"\xff\xd8\xff", "damaged, or of a rare kind"),
            (b"half a picture", "not a picture, whatever its name says"),
        ],
    )
    def test_what_is_no_picture_is_called_by_its_name(self, tmp_path, content, why):
        (tmp_path / "photo.jpg").write_bytes(content)
        with pytest.raises(ImageError) as caught:
            pictures.read_image(tmp_path / "photo.jpg")
        assert str(caught.value) == (
            f"image {tmp_path}/photo.jpg cannot be read ({why}): replace it or leave it out."
        )
        with pytest.raises(ImageError, match=why.split(":")[0]):
            pictures.read_image(io.BytesIO(content))

    @pytest.mark.parametrize("error", [MemoryError(), IndexError("x"), struct.error("y"), KeyError])
    def test_whatever_a_decoder_raises_is_an_image_error(self, tmp_path, monkeypatch, error):
        file = save(tmp_path / "a.png", np.zeros((5, 5), np.uint8))
        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: (_ for _ in ()).throw(error))
        with pytest.raises(ImageError, match="a.png cannot be read"):
            pictures.read_image(file)


def eight(root: Path, classes="abcdefgh") -> Path:
    """A good folder, two pictures each: different ones, so that none is a copy of another."""
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(2):
            color = tuple(hashlib.sha256(f"{root}/{name}/{i}".encode()).digest()[:3])
            Image.new("RGB", (8, 8), color).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def good(tmp_path, own_cache):
    return eight(tmp_path / "pictures")


def read(root, split="train"):
    """A split of a folder, and the text of the warning, which has all notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = load("folder", split, root)
    assert [str(w.message) for w in caught] == (
        [f"folder: {'; '.join(found.notes)}"] if found.notes else []
    )
    return found


ODD_BYTES = b"M\xfcll \x80.png"
ODD_NAMES = [
    "line\nbreak.png",
    "\x1b[31mred.png",
    "quote'\".png",
    "<script>alert(1)</script>.png".replace("/", ""),
    "\u202egnp.exe.png",
    "-rf.png",
    " two  spaces .png",
    "x" * 250 + ".png",
    "🦜.png",
    "é.png",
    unicodedata.normalize("NFD", "é.png"),
    "$HOME `ls` %s {} \\n.png",
]


class TestFolder:
    def test_nothing_odd_has_no_notes(self, good):
        train, test = read(good), read(good, "test")
        assert train.class_names == tuple("abcd") and test.class_names == tuple("efgh")
        assert len(train) == len(test) == 8 and train.notes == test.notes == ()

    def test_what_is_left_out_is_counted_and_named_by_reason(self, good):
        for i in range(3):
            (good / "a" / f"phone{i}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
        (good / "b" / "raw.CR2").write_bytes(b"II*\0")
        (good / "b" / "raw.nef").write_bytes(b"MM\0*")
        for name in ("logo.svg", "clip.MOV", "notes.txt", "IMG_1.AAE"):
            (good / "c" / name).write_bytes(b"x")
        (good / "h" / "empty.jpg").touch()
        (good / "none").mkdir()
        save(good / "loose.png", np.zeros((4, 4), np.uint8))
        for split in ("train", "test"):  # of the whole folder, whatever part is read
            assert read(good, split).notes == (
                "3 left out (HEIC: pip install pillow-heif): "
                "a/phone0.HEIC, a/phone1.HEIC, a/phone2.HEIC",
                "2 left out (RAW: export them as JPEG or PNG): b/raw.CR2, b/raw.nef",
                "2 left out (not a picture file): c/IMG_1.AAE, c/notes.txt",
                "1 left out (video: save frames of it as pictures): c/clip.MOV",
                "1 left out (vector graphics: export them as PNG): c/logo.svg",
                "1 left out (empty file): h/empty.jpg",
                "1 left out (not in a class folder): loose.png",
                "1 left out (empty folder): none",
            )
        assert image_sets.notes("folder", good) == read(good).notes

    def test_of_many_names_some(self, good):
        for i in range(1234):
            (good / "a" / f"{i:04}.heic").touch()
        (note,) = read(good).notes
        assert note.startswith(
            "1,234 left out (HEIC: pip install pillow-heif): a/0000.heic, a/0001"
        )
        assert note.endswith("a/0009.heic and 1,224 more")

    def test_a_plugin_that_is_installed_is_used(self, good, monkeypatch):
        """Such as pillow-heif, which registers when it is told to."""
        (good / "a" / "phone.heic").write_bytes(encoded(Image.new("RGB", (8, 8), RED), "PNG"))
        assert len(read(good)) == 8

        def register():
            monkeypatch.setitem(Image.EXTENSION, ".heic", "PNG")

        plugin = types.SimpleNamespace(register_heif_opener=register)
        monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
        monkeypatch.setattr(pictures, "_readable_suffixes", pictures._readable_suffixes.__wrapped__)
        assert len(read(good)) == 9 and read(good).notes == ()

    def test_pictures_without_a_suffix_or_with_an_odd_one(self, good):
        for i, name in enumerate(["IMG_0001", "photo.jpg_large", "hash.f3a9", "VIDEO.THM"]):
            content = encoded(Image.new("RGB", (8, 8), (i, 99, 99)), ("JPEG", "PNG")[i % 2])
            (good / "a" / name).write_bytes(content)
        (good / "a" / "README").write_text("text")
        assert len(read(good)) == 12
        assert read(good).notes == ("1 left out (not a picture file): a/README",)

    def test_clutter_is_passed_over(self, good):
        clutter = [".DS_Store", "Thumbs.db", "thumbs.DB", "Desktop.ini", "._0.png", "Icon\r"]
        clutter += ["__MACOSX/a/._0.png", "@eaDir/0.png/SYNOFILE_THUMB_M.jpg", ".git/x.png"]
        clutter += ["System Volume Information/x.jpg", "$RECYCLE.BIN/x.jpg", "#recycle/x.jpg"]
        for where in (good, good / "a"):
            for name in clutter:
                (where / name).parent.mkdir(parents=True, exist_ok=True)
                (where / name).write_bytes(b"x")
        assert (len(read(good)), read(good).notes) == (8, ())

    def test_links(self, good, tmp_path):
        other = eight(tmp_path / "elsewhere", "xy")
        Image.new("RGB", (8, 8), "teal").save(tmp_path / "one.png")
        (good / "a" / "gone.jpg").symlink_to("/nowhere/picture.jpg")
        (good / "a" / "itself.jpg").symlink_to("itself.jpg")
        (good / "a" / "one.png").symlink_to(tmp_path / "one.png")
        (good / "a" / "up").symlink_to(good)
        (good / "a" / "above").symlink_to(tmp_path)
        (good / "b" / "again").symlink_to(good / "c")
        (good / "linked").symlink_to(other / "x")
        train, test = read(good), read(good, "test")
        assert (len(train), len(test)) == (11, 8)  # 5 classes and 4
        assert test.class_names == ("f", "g", "h", "linked")
        assert train.notes == (
            "3 left out (a link to a folder that is read already, or lies above): "
            "a/above, a/up, b/again",
            "1 left out (a link to nothing): a/gone.jpg",
            "1 left out (Too many levels of symbolic links): a/itself.jpg",
        )

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
    def test_pipes_and_devices_do_not_stop_it(self, good):
        os.mkfifo(good / "a" / "pipe.jpg")
        (good / "a" / "device.jpg").symlink_to("/dev/zero")
        assert read(good).notes == (
            "1 left out (a link to nothing): a/device.jpg",
            "1 left out (not a file): a/pipe.jpg",
        ) or read(good).notes == ("2 left out (not a file): a/device.jpg, a/pipe.jpg",)

    def test_folders_and_files_that_may_not_be_read(self, good, monkeypatch):
        scandir, real_open = os.scandir, Image.open

        def closed(path):
            if Path(path).name == "b":
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        def private(path, *args):
            if str(path).endswith("a/1.png"):
                raise PermissionError(13, "Permission denied", str(path))
            return real_open(path, *args)

        monkeypatch.setattr(os, "scandir", closed)
        monkeypatch.setattr(Image, "open", private)
        train = read(good)
        assert train.notes == ("2 left out (Permission denied): a/1.png, b",)
        assert train.class_names == tuple("acde")
        monkeypatch.setattr(os, "scandir", lambda _: closed("b"))
        with pytest.raises(DatasetError, match="pictures cannot be looked through.*denied"):
            load("folder", "train", good)

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse the name")
    def test_names_of_any_bytes(self, good):
        for name in (ODD_BYTES, *map(os.fsencode, ODD_NAMES)):
            path = os.fsencode(good / "a") + b"/" + name
            with open(path, "wb") as file:
                content = Image.new("RGB", (8, 8), tuple(np.frombuffer(name[:3], np.uint8)))
                file.write(encoded(content.resize((8, 8 + len(name) % 50)), "PNG"))
        bad = Path(os.fsdecode(os.fsencode(good / "a") + b"/bad\n\xff.jpg"))
        bad.write_bytes(b"")
        train = read(good)
        assert len(train) == 8 + 1 + len(ODD_NAMES)
        assert len(read(good)) == len(train)  # from what was noted of them
        assert train.notes == (r"1 left out (empty file): a/bad\n\udcff.jpg",)
        source = pixels.decode(train, 16, progress=False)
        assert len(source) == len(train)
        with pytest.raises(ImageError, match=r"a/bad\\n\\udcff.jpg cannot be read"):
            pictures.read_image(bad)
        train.describe().encode()

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse the name")
    def test_class_folders_of_any_bytes(self, good):
        os.rename(good / "a", os.fsencode(good) + b"/a\xe9")
        (good / "b").rename(good / "b\nb")
        assert read(good).class_names == ("a\udce9", "b\nb", "c", "d")

    def test_letters_composed_and_decomposed_are_one_class(self, good):
        (good / "a").rename(good / unicodedata.normalize("NFD", "é"))
        (good / "b").rename(good / "é")
        train, test = read(good), read(good, "test")
        assert train.num_classes + test.num_classes == 7
        assert test.class_names[-1] == "é" and (test.labels == 2).sum() == 4

    def test_copies_are_counted(self, good):
        for name in ("a/copy.png", "e/leak.png"):
            (good / name).write_bytes((good / "a/0.png").read_bytes())
        assert read(good).notes == (
            "exact copies of other pictures: 2, of which 1 in another folder: "
            "a/copy.png = a/0.png, e/leak.png = a/0.png",
        )

    def test_folders_inside_of_class_folders(self, good):
        eight(good / "a", ("one", "two"))
        Image.new("RGB", (9, 9)).save(good / "b" / "9.png")
        train = read(good)
        assert train.class_names == tuple("abcd") and (train.labels == 0).sum() == 6
        assert train.notes[-1] == (
            "classes are the outer folders: their pictures are also those of the 2 folders "
            "inside: a/one, a/two"
        )

    def test_a_split_given_as_folders(self, tmp_path, own_cache):
        eight(tmp_path / "Train", "abc")
        eight(tmp_path / "test", "cd")
        eight(tmp_path / "extra", "z")
        train, test = read(tmp_path), read(tmp_path, "test")
        assert (train.class_names, test.class_names) == (tuple("abc"), tuple("cd"))
        assert "2 left out (not in a class folder): extra/z/0.png, extra/z/1.png" in train.notes
        shared = (
            "train and test share 1 classes, so retrieval is judged on classes that were trained "
            "on: c"
        )
        assert shared in train.notes and shared in test.notes

    def test_train_and_val_are_not_two_classes(self, tmp_path, own_cache):
        eight(tmp_path / "train", "abc")
        eight(tmp_path / "val", "abc")
        with pytest.raises(DatasetError, match="train and val: name them train and test, or pass"):
            load("folder", "train", tmp_path)

    def test_our_own_cache_is_no_class(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SOBOOK_DATA", str(eight(tmp_path)))
        for _ in range(2):
            train = read(tmp_path)
            pixels.decode(train, 16, progress=False)
            assert train.class_names == tuple("abcd") and train.notes == ()

    def test_one_folder_too_high(self, tmp_path, own_cache):
        eight(tmp_path / "pictures")
        with pytest.raises(DatasetError, match="1 class folder.*name the folder that holds these"):
            load("folder", "train", tmp_path)

    def test_nothing_but_phone_pictures_says_what_to_install(self, good):
        for path in good.glob("*/*.png"):
            path.rename(path.with_suffix(".heic"))
        with pytest.raises(DatasetError, match="0 class folder.*16 left out .HEIC: pip install"):
            load("folder", "train", good)

    def test_what_was_noted_of_pictures_may_be_damaged_or_unwritable(self, good, tmp_path):
        assert len(read(good)) == 8
        (memory,) = (tmp_path / "data" / "cache").glob("pictures-*.json")
        for content in (b"", b"[]", b'{"a": 3}', b"\xff", b"null"):
            memory.write_bytes(content)
            assert len(read(good)) == 8
        memory.unlink()
        memory.mkdir()
        assert len(read(good)) == 8

    def test_a_picture_is_looked_at_again_only_when_it_has_changed(self, good, monkeypatch):
        looked = []
        decode = pictures._decode
        monkeypatch.setattr(pictures, "_decode", lambda path: looked.append(path) or decode(path))
        read(good), read(good)
        assert len(looked) == 16
        (good / "a" / "0.png").write_bytes(b"nothing")
        assert len(read(good)) == 7 and len(looked) == 17
        Image.new("RGB", (9, 9)).save(good / "a" / "0.png")  # mended
        assert len(read(good)) == 8 and len(looked) == 18

    def test_pillows_own_warnings_are_not_passed_on(self, good):
        exif = BROKEN_EXIF["value outside"]
        Image.new("RGB", (9, 9)).save(good / "a" / "phone.jpg", exif=exif)
        load_it = (
            "import sys; from sobook.data import load; print(load('folder', 'train', sys.argv[1]))"
        )
        done = subprocess.run([sys.executable, "-c", load_it, good], capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == ""

    def test_many_classes_of_one_picture(self, tmp_path, own_cache):
        one = encoded(Image.new("RGB", (4, 4)), "PNG")
        for i in range(300):
            (tmp_path / f"{i:05}").mkdir()
            (tmp_path / f"{i:05}" / "1.png").write_bytes(one + i.to_bytes(4, "big"))
        train = read(tmp_path)
        assert train.num_classes == len(train) == 150 and train.notes == ()
        assert "classes with a single image: 150" in train.describe()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.getuid(), reason="needs to become another user")
def test_a_user_without_rights(tmp_path):
    """The real thing: root may read everything, so another user looks."""
    root = eight(tmp_path / "pictures")
    (root / "a").chmod(0)
    (root / "b" / "0.png").chmod(0)
    warm = eight(tmp_path / "warm", "x")  # Python's own files may be closed to the other user
    script = f"""
import os; os.environ["SOBOOK_DATA"] = {str(tmp_path / "data")!r}
from sobook.data import pictures
from pathlib import Path
pictures.find(Path({str(warm)!r})); os.setuid(65534)
print(*pictures.find(Path({str(root)!r})).notes())"""
    for folder in [tmp_path, *tmp_path.parents][:3]:
        folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "2 left out (Permission denied): a, b/0.png", done.stderr
