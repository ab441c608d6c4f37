"""Decoding, the pixel cache, and batches."""

import os
import shutil
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from sobook.data import loader, pixels
from sobook.data.image_sets import ImageSet


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def colors(rng):
    """A smooth (40, 60, 3) picture, so that JPEG keeps it."""
    y, x = np.mgrid[0:40, 0:60]
    return np.stack([x * 4, y * 6, 255 - x * 2], axis=2).astype(np.uint8)


@pytest.fixture
def some_images(tmp_path, rng):
    """Twelve small pictures of four classes, of different shapes."""
    paths = []
    for number in range(12):
        height, width = 20 + number, 30 - number
        array = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        paths.append(save(tmp_path / f"{number}.png", array))
    return ImageSet(tuple(paths), np.arange(12) % 4, tuple("abcd"), "folder", "train")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "data"))


class TestReadImage:
    @pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
    def test_any_mode_becomes_upright_8_bit_rgb(self, tmp_path, colors, mode):
        suffix = ".jpg" if mode == "CMYK" else ".png"
        if mode == "I;16":
            sixteen = colors[..., 0].astype(np.uint16) * 257
            Image.fromarray(sixteen).save(tmp_path / "image.png")
        else:
            Image.fromarray(colors).convert(mode).save(tmp_path / f"image{suffix}")
        found = pixels.read_image(next(tmp_path.glob("image.*")))
        assert found.mode == "RGB" and found.size == (60, 40)
        if mode in ("RGB", "RGBA"):
            np.testing.assert_array_equal(np.asarray(found), colors)
        if mode == "I;16":
            np.testing.assert_array_equal(np.asarray(found)[..., 0], colors[..., 0])

    def test_transparent_pixels_become_white(self, tmp_path):
        clear = np.zeros((5, 5, 4), np.uint8)
        found = pixels.read_image(save(tmp_path / "clear.png", clear))
        assert np.all(np.asarray(found) == 255)

    def test_exif_rotation_is_undone(self, tmp_path, colors):
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90 degrees
        Image.fromarray(colors).save(tmp_path / "turned.png", exif=exif)
        found = np.asarray(pixels.read_image(tmp_path / "turned.png"))
        np.testing.assert_array_equal(found, np.rot90(colors, -1))

    def test_animation_gives_its_first_frame(self, tmp_path):
        frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
        frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
        assert pixels.read_image(tmp_path / "two.gif").getpixel((3, 3)) == (255, 0, 0)

    def test_missing_file_is_named(self, tmp_path):
        with pytest.raises(pixels.ImageError, match="gone.jpg is missing.*sobook prepare"):
            pixels.read_image(tmp_path / "gone.jpg")

    @pytest.mark.parametrize("content", [b"", b"no picture", "truncated"])
    def test_corrupt_file_is_named(self, tmp_path, colors, content):
        file = tmp_path / "broken.jpg"
        Image.fromarray(colors).save(file, quality=95)
        file.write_bytes(file.read_bytes()[:400] if content == "truncated" else content)
        with pytest.raises(pixels.ImageError, match="broken.jpg cannot be read.*replace it"):
            pixels.read_image(file)

    def test_truncated_tail_is_an_error_whatever_the_format(self, tmp_path, colors):
        for kind in ("jpg", "png", "webp", "gif", "tif"):
            file = tmp_path / f"cut.{kind}"
            Image.fromarray(colors).save(file)
            file.write_bytes(file.read_bytes()[:-40])
            with pytest.raises(pixels.ImageError, match=f"cut.{kind} cannot be read"):
                pixels.read_image(file)

    def test_decompression_bomb_is_refused(self, tmp_path, monkeypatch):
        file = save(tmp_path / "bomb.png", np.zeros((300, 300), np.uint8))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)  # Pillow refuses twice as many
        with pytest.raises(pixels.ImageError, match="bomb.png cannot be read.*bomb"):
            pixels.read_image(file)


def left_in(cache) -> list[str]:
    return [path.name for path in cache.iterdir() if path.suffix != ".lock"]


SHARING = """
    import hashlib, sys
    import numpy as np
    from sobook.data import loader, pixels
    from sobook.data.image_sets import ImageSet
    from pathlib import Path
    paths = tuple(map(Path, sys.argv[1:]))
    print("ready", flush=True)
    sys.stdin.readline()
    some = ImageSet(paths, np.arange(len(paths)) % 4, tuple("abcd"), "folder", "train")
    source = pixels.decode(some, 16, progress=False)
    content = b"".join(source[i].tobytes() for i in range(len(source)))
    print(source.folder, hashlib.sha256(content).hexdigest())
"""

MEMORY = """
    import sys, threading, time
    import numpy as np
    from sobook.data import loader, pixels
    from sobook.data.image_sets import ImageSet
    from pathlib import Path
    def own():  # without the pages of the cache, which the system takes back when it needs them
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        return int(status["RssAnon"].split()[0]) / 1e3
    peak = start = own()
    def watch():
        global peak
        while True:
            peak = max(peak, own())
            time.sleep(0.002)
    threading.Thread(target=watch, daemon=True).start()
    paths = tuple(map(Path, sys.argv[1:]))
    some = ImageSet(paths, np.zeros(len(paths), int), ("a",), "folder", "train")
    source = pixels.decode(some, 128, progress=False)
    for epoch in range(2):
        batches = loader.TrainingBatches(
            source, some.labels, image_size=96, batch_size=30, epoch=epoch
        )
        for batch in loader.training_loader(batches, workers=2):
            pass
    print(peak - start)
"""


class TestPixels:
    def test_equal_to_decoding_each_file(self, some_images):
        source = pixels.decode(some_images, 16, progress=False)
        assert len(source) == 12
        for index, path in enumerate(some_images.paths):
            with Image.open(path) as image:
                scale = 16 / min(image.size)
                size = [int(side * scale + 1e-9) for side in image.size]
                expected = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
            np.testing.assert_array_equal(source[index], expected)

    def test_images_hardly_larger_are_kept_when_not_enlarged(self, some_images):
        source = pixels.decode(some_images, 18, enlarge=False, progress=False)
        assert source[0].shape == (20, 30, 3)  # up to 22.5
        assert source[3].shape == (18, 21, 3)  # was (23, 27)

    def test_small_images_are_kept_when_not_enlarged(self, some_images):
        source = pixels.decode(some_images, 64, enlarge=False, progress=False)
        assert source[3].shape == (23, 27, 3)

    def test_a_set_over_budget_is_kept_as_jpeg(self, some_images):
        raw = pixels.decode(some_images, 64, progress=False)
        small = pixels.decode(some_images, 64, budget=1000, progress=False)
        assert small.as_jpeg and not raw.as_jpeg and small.folder != raw.folder
        for index in range(len(raw)):
            assert small[index].shape == raw[index].shape
            assert np.abs(small[index].astype(int) - raw[index]).mean() < 6  # noise, the worst case

    def test_large_caches_are_announced_and_a_full_disk_is_refused(
        self, some_images, monkeypatch, capsys, tmp_path
    ):
        monkeypatch.setattr(pixels, "_raw_bytes", lambda *_: 2_500_000_000)
        pixels.decode(some_images, 16, progress=True)
        assert "2.5 GB" in capsys.readouterr().out
        usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
        monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(pixels.ImageError, match="2.5 GB.*make room.*SOBOOK_DATA"):
            pixels.decode(some_images, 17, progress=False)

    def test_second_call_reads_the_cache_and_a_changed_file_makes_a_new_one(self, some_images):
        first = pixels.decode(some_images, 16, progress=False)
        assert pixels.decode(some_images, 16, progress=False).folder == first.folder
        save(some_images.paths[0], np.zeros((99, 33, 3), np.uint8))
        changed = pixels.decode(some_images, 16, progress=False)
        assert changed.folder != first.folder and changed[0].max() == 0

    def test_processes_at_the_same_time_share_one_cache(self, some_images):
        """Both start on an empty cache; whoever is second finds a copy as good."""
        command = [sys.executable, "-c", textwrap.dedent(SHARING), *map(str, some_images.paths)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        children = [subprocess.Popen(command, **pipes) for _ in range(2)]
        assert all(child.stdout.readline() == "ready\n" for child in children)
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        found = [child.communicate(timeout=120)[0] for child in children]
        assert all(child.returncode == 0 for child in children)
        ours = pixels.decode(some_images, 16, progress=False)
        assert found[0] == found[1] and found[0].split()[0] == str(ours.folder)
        assert left_in(ours.folder.parent) == [ours.folder.name]

    def test_what_a_killed_run_left_is_cleared_away(self, some_images):
        folder = pixels.decode(some_images, 16, progress=False).folder
        shutil.move(folder, f"{folder}.partial")  # killed before the renaming
        os.truncate(f"{folder}.partial/pixels.bin", 100)
        source = pixels.decode(some_images, 16, progress=False)
        assert os.path.getsize(folder / "pixels.bin") == source.shapes.prod(axis=1).sum() * 3
        assert left_in(folder.parent) == [folder.name]

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
    def test_memory_in_use_does_not_grow_with_the_number_of_images(self, tmp_path):
        """From 15 to 118 MB of pixels the process's own memory grows by less than 20 MB."""
        paths = [tmp_path / f"{number}.png" for number in range(2400)]
        picture = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
        save(paths[0], picture, compress_level=0)
        for path in paths[1:]:
            shutil.copy(paths[0], path)
        peaks = []
        for count in (300, 2400):  # more than are decoded at a time
            command = [sys.executable, "-c", textwrap.dedent(MEMORY)]
            command += map(str, paths[:count])
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            peaks.append(float(out))
        print(f"peak memory: {peaks[0]:.0f} MB for 300 pictures, {peaks[1]:.0f} MB for 2,400")
        assert peaks[1] < peaks[0] + 20

    def test_corrupt_image_leaves_nothing_behind(self, some_images, tmp_path):
        some_images.paths[5].write_bytes(b"nothing")
        with pytest.raises(pixels.ImageError, match="5.png"):
            pixels.decode(some_images, 16, progress=False)
        assert not left_in(tmp_path / "data" / "cache")


class TestTrainingBatches:
    def make(self, some_images, **options):
        source = pixels.decode(some_images, 20, progress=False)
        settings = {"image_size": 16, "batch_size": 4, **options}
        return loader.TrainingBatches(source, some_images.labels, **settings)

    def test_shapes_types_and_whole_batches(self, some_images):
        batches = self.make(some_images, batch_size=5)
        batch, labels = batches[0]
        assert len(batches) == 2
        assert batch.shape == (5, 3, 16, 16) and batch.dtype == torch.uint8
        assert labels.dtype == torch.int64

    def test_an_epoch_visits_every_image_once(self, some_images):
        assert sorted(self.make(some_images).plan.ravel()) == list(range(12))

    def test_batch_depends_on_seed_epoch_and_number_alone(self, some_images):
        once, again = (
            self.make(some_images, seed=3, epoch=2),
            self.make(some_images, seed=3, epoch=2),
        )
        torch.manual_seed(99)
        once[0], once[1]  # reading others first changes nothing
        torch.testing.assert_close(once[2][0], again[2][0], rtol=0, atol=0)
        for changed in ({"seed": 4, "epoch": 2}, {"seed": 3, "epoch": 3}):
            assert not torch.equal(self.make(some_images, **changed)[2][0], again[2][0])

    def test_torch_generator_is_left_alone(self, some_images):
        batches = self.make(some_images)
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        batches[1]
        torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)

    @pytest.mark.parametrize("as_jpeg", [False, True])
    def test_equal_to_the_transforms_of_torchvision(self, some_images, as_jpeg):
        from torchvision.transforms import InterpolationMode, v2

        budget = 0 if as_jpeg else pixels.RAW_BUDGET
        source = pixels.decode(some_images, 20, budget=budget, progress=False)
        assert source.as_jpeg == as_jpeg
        batches = loader.TrainingBatches(
            source, some_images.labels, image_size=16, batch_size=12, seed=3, epoch=2
        )
        way = v2.Compose(
            [
                v2.RandomResizedCrop(16, (0.2, 1.0), interpolation=InterpolationMode.BICUBIC),
                v2.RandomHorizontalFlip(),
            ]
        )
        torch.manual_seed(loader.mix_seeds(3, 2, 0))
        whole = [torch.from_numpy(source[row].copy()).permute(2, 0, 1) for row in batches.plan[0]]
        expected = torch.stack([way(image) for image in whole])
        torch.testing.assert_close(batches[0][0], expected, rtol=0, atol=0)

    def test_a_reader_may_stop_early_and_nothing_stays_behind(self, some_images):
        threads, usual = threading.active_count(), torch.get_num_threads()
        reading = loader.training_loader(self.make(some_images, batch_size=2), workers=2)
        next(reading)
        reading.close()
        assert threading.active_count() == threads and torch.get_num_threads() == usual

    @pytest.mark.parametrize("workers", [0, 1, 2, 5])
    def test_batches_do_not_depend_on_workers_or_start(self, some_images, workers):
        batches = self.make(some_images)
        loaded = list(loader.training_loader(batches, workers=workers, start=1))
        assert len(loaded) == 2
        for number, (batch, labels) in enumerate(loaded, start=1):
            torch.testing.assert_close(batch, batches[number][0], rtol=0, atol=0)
            torch.testing.assert_close(labels, batches[number][1])

    def test_balanced_batches(self, some_images):
        batches = self.make(some_images, images_per_class=2)
        for row in batches.plan:
            _, counts = np.unique(some_images.labels[row], return_counts=True)
            assert list(counts) == [2, 2] and len(set(row)) == 4

    def test_small_classes_are_named(self, some_images):
        with pytest.warns(UserWarning, match="4 of 4 classes have fewer than 4 images"):
            batches = self.make(some_images, images_per_class=4, batch_size=8)
        assert batches.plan.shape == (1, 8)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch_size": 13}, "batch_size is 13.*only 12 training images"),
            ({"images_per_class": 3}, "multiple of 3"),
            ({"images_per_class": 2, "batch_size": 10}, "5 classes out of 4"),
        ],
    )
    def test_impossible_batches(self, some_images, options, message):
        with pytest.raises(ValueError, match=message):
            self.make(some_images, **options)


def test_evaluation_transform_equals_torchvision(tmp_path, rng):
    """Short side 256 → center 224 in proportion, against torchvision's Resize and CenterCrop."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    array = rng.integers(0, 255, (90, 131, 3), dtype=np.uint8)
    path = save(tmp_path / "one.png", array)
    one = ImageSet((path,), np.array([0]), ("a",), "folder", "test")
    source = pixels.decode(one, loader.evaluation_short_side(64), progress=False)
    (batch,) = loader.evaluation_batches(source, 64, 8)
    torchvision_way = Compose([Resize(73, InterpolationMode.BICUBIC), CenterCrop(64)])
    expected = np.asarray(torchvision_way(Image.fromarray(array)))
    np.testing.assert_array_equal(batch[0].permute(1, 2, 0).numpy(), expected)
