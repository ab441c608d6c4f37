"""Damaged files, by the hundred, through everything that reads them: python -m … COUNT SEED.

A process of its own, so that its memory can be measured and limited. Prints one line of JSON.
"""

import collections
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from sobook.data import image_sets, pictures, pixels
from sobook.errors import SobookError

SLOWEST = 10  # seconds for one file
MEMORY = 2**30  # bytes


def seeds() -> list[tuple[str, bytes]]:
    """Small good files of many kinds: suffix and content."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (5, 6, 3), dtype=np.uint8)).resize((48, 40))
    gray, alpha = smooth.convert("L"), smooth.convert("RGBA")
    alpha.putalpha(gray)
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010F: "a camera", 0x829A: 0.01})
    frames: dict = {"save_all": True, "append_images": [smooth.rotate(90, expand=False), smooth]}
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    real = Image.fromarray(np.asarray(gray).astype(np.float32) / 255)
    made: list[tuple[Image.Image, str, str, dict]] = [
        (smooth, ".jpg", "JPEG", {"exif": exif}),
        (smooth, ".jpg", "JPEG", {"progressive": True}),
        (smooth.convert("CMYK"), ".jpg", "JPEG", {}),
        (smooth, ".mpo", "MPO", frames),
        (smooth, ".png", "PNG", {"exif": exif}),
        (smooth.quantize(8), ".png", "PNG", {"transparency": 0}),
        (alpha, ".png", "PNG", {}),
        (deep, ".png", "PNG", {}),
        (gray.convert("1"), ".png", "PNG", {}),
        (smooth, ".png", "PNG", frames),
        (smooth, ".gif", "GIF", frames),
        (smooth, ".webp", "WEBP", {"exif": exif}),
        (alpha, ".webp", "WEBP", {"lossless": True}),
        (smooth, ".webp", "WEBP", frames),
        (smooth, ".tif", "TIFF", {"exif": exif}),
        (smooth, ".tif", "TIFF", {"compression": "tiff_lzw", **frames}),
        (smooth, ".tif", "TIFF", {"compression": "jpeg"}),
        (alpha, ".tif", "TIFF", {"compression": "tiff_adobe_deflate"}),
        (real, ".tif", "TIFF", {}),
        (gray.convert("1"), ".tif", "TIFF", {"compression": "group4"}),
        (smooth.convert("CMYK"), ".tif", "TIFF", {}),
        (smooth, ".bmp", "BMP", {}),
        (smooth, ".ppm", "PPM", {}),
        (deep, ".pgm", "PPM", {}),
        (smooth, ".tga", "TGA", {"compression": "tga_rle"}),
        (smooth, ".qoi", "QOI", {}),
        (smooth, ".avif", "AVIF", {}),
        (smooth, ".jp2", "JPEG2000", {}),
    ]
    files = []
    for image, suffix, kind, given in made:
        options = dict(given)
        if Image.registered_extensions().get(suffix) and kind in Image.SAVE:
            buffer = BytesIO()
            pages = [page.copy() for page in options.pop("append_images", ())]
            # Copies, since saving leaves settings in an image.
            image.copy().save(buffer, kind, **options, append_images=pages)
            files.append((suffix, buffer.getvalue()))
    return files


def mutant(rng: np.random.Generator, content: bytes, others: list[bytes]) -> bytes:
    """The content with bytes changed, cut off, moved, repeated, or taken from another file."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        # Half of the changes where the headers are.
        end = len(data) if rng.random() < 0.5 else min(len(data), 120)
        at = int(rng.integers(0, max(end, 1)))
        size = int(rng.choice([1, 1, 2, 4, 4, 8, 64]))
        kind = rng.integers(0, 7)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + size]
        elif kind == 2:
            data[at:at] = data[at : at + size]
        elif kind == 3:
            other = others[rng.integers(0, len(others))]
            data[at:] = other[int(rng.integers(0, max(len(other), 1))) :]
        elif kind == 4:
            data[at : at + size] = bytes([rng.choice([0, 0xFF, 0x7F, 0x80])]) * size
        else:
            data[at : at + size] = rng.bytes(size)
    return bytes(data)


def benchmark(root: Path) -> dict[Path, tuple[str, bytes]]:
    """Tiny benchmarks in their official layouts: index file → (name, content)."""
    one = BytesIO()
    Image.new("RGB", (8, 8)).save(one, "JPEG")
    cub, cars, sop = root / "CUB_200_2011", root / "cars196", root / "Stanford_Online_Products"
    shop = root / "Inshop_Clothes"
    lists = {
        cub / "images.txt": ("cub200", "".join(f"{i} a/{i % 3}.jpg\n" for i in range(6))),
        cub / "image_class_labels.txt": ("cub200", "".join(f"{i} {99 + i}\n" for i in range(6))),
        cub / "classes.txt": ("cub200", "".join(f"{k} {k}.Bird\n" for k in range(1, 201))),
        sop / "Ebay_train.txt": (
            "sop",
            "image_id class_id super path\n1 1 1 a/0.jpg\n2 2 1 a/1.jpg\n",
        ),
        sop / "Ebay_test.txt": (
            "sop",
            "image_id class_id super path\n3 3 1 a/0.jpg\n4 3 1 a/2.jpg\n",
        ),
        shop / "list_eval_partition.txt": (
            "inshop",
            "3\nimage_name item_id evaluation_status\na/0.jpg id_00000001 train\n"
            "a/1.jpg id_00000002 query\na/2.jpg id_00000002 gallery\n",
        ),
    }
    for home in (cub / "images", cars, sop, shop):
        (home / "a").mkdir(parents=True)
        for i in range(3):
            (home / "a" / f"{i}.jpg").write_bytes(one.getvalue())
    kind = [(name, object) for name in ("relative_im_path", "bbox_x1", "class", "test")]
    table = np.array([(f"a/{i}.jpg", 1, 98 + i, 0) for i in range(3)], dtype=kind)
    names = np.array([f"Car {k}" for k in range(196)], dtype=object)
    contents = {path: (name, text.encode()) for path, (name, text) in lists.items()}
    for compressed in (False, True):
        buffer = BytesIO()
        savemat(buffer, {"annotations": table[None], "class_names": names[None]}, compressed)
        if compressed:
            buffer = BytesIO()
            savemat(
                buffer,
                {"annotations": table[None], "class_names": names[None]},
                do_compression=True,
            )
        contents[cars / ("cars_annos.mat" if compressed else "raw.mat")] = (
            "cars196",
            buffer.getvalue(),
        )
    return contents


class Report:
    """What came out of each call, and what must not have."""

    def __init__(self):
        self.outcomes, self.wrong, self.slowest = collections.Counter(), [], 0.0

    def call(self, what: str, function: Callable, *arguments, **options):
        start, result = time.monotonic(), None
        signal.alarm(SLOWEST)
        try:
            result = function(*arguments, **options)
            self.outcomes["read"] += 1
        except SobookError as error:
            if str(error).count("\n"):
                self.wrong.append(f"{what}: not one line: {error!r}")
            self.outcomes[type(error).__name__] += 1
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            self.wrong.append(f"{what}: {error!r} in {last.filename}:{last.lineno}")
        finally:
            signal.alarm(0)
        self.slowest = max(self.slowest, time.monotonic() - start)
        return result


def fuzz_pictures(count: int, seed: int, root: Path, report: Report) -> None:
    """Each mutant alone, then all of them as a folder: what was read is what is in the set."""
    rng, good = np.random.default_rng([seed, 0]), seeds()
    contents = [content for _, content in good]
    folder, read = root / "pictures", set()
    for number in range(count):
        suffix, content = good[number % len(good)]
        file = folder / f"class{number % 4}" / f"{number}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(mutant(rng, content, contents))
        image = report.call(f"read_image {seed} {file.name}", pictures.read_image, file)
        if image is not None:
            read.add(file)
            if image.mode != "RGB":
                report.wrong.append(f"{file.name} is {image.mode}")
    kept: set[Path] = set()
    signal.alarm(0)
    for split in ("train", "test"):
        part = image_sets.load("folder", split, folder)
        kept |= set(part.paths)
        part.describe()
        for enlarge in (True, False):
            source = pixels.decode(part, 16, enlarge=enlarge, progress=False)
            report.outcomes["decoded"] += len(source)
    if kept != read:
        report.wrong.append(f"read alone or in a folder, but not both: {sorted(kept ^ read)}")


def fuzz_lists(count: int, seed: int, root: Path, report: Report) -> None:
    """One damaged index at a time, in a benchmark that is sound otherwise."""
    rng, contents = np.random.default_rng([seed, 1]), benchmark(root)
    raw = root / "cars196" / "raw.mat"
    everything = [content for _, content in contents.values()]
    for path, (_, content) in contents.items():
        if path != raw:
            path.write_bytes(content)
    for number in range(count):
        path, (name, content) = list(contents.items())[number % len(contents)]
        target = raw.with_name("cars_annos.mat") if path == raw else path
        target.write_bytes(mutant(rng, content, everything))
        what = f"{path.name} {seed} {number}"
        report.call(f"prepare {what}", image_sets.prepare, name, root, progress=False)
        for split in ("train", *image_sets.test_splits(name)):
            report.call(f"load {what}", image_sets.load, name, split, root, allow_partial=True)
        target.write_bytes(content)


def peak_memory() -> int:
    """Bytes. What getrusage says starts at the peak of the process that started this one."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(count: int, seed: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (8 * MEMORY, 8 * MEMORY))

    def too_slow(*_):
        raise TimeoutError(f"over {SLOWEST} s")

    signal.signal(signal.SIGALRM, too_slow)
    warnings.simplefilter("ignore", UserWarning)
    report = Report()
    start = peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SOBOOK_DATA"] = f"{folder}/data"
        fuzz_pictures(count, seed, Path(folder), report)
        fuzz_lists(count // 3, seed, Path(folder) / "benchmarks", report)
    memory = peak_memory() - start
    print(
        json.dumps(
            {
                "wrong": report.wrong,
                "slowest": report.slowest,
                "memory": memory,
                "outcomes": report.outcomes,
            }
        )
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
