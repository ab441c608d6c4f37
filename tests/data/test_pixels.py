"""Decoding, and the cache of decoded pixels."""

import multiprocessing
import os
import shutil
import sys
import threading
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sobook import files
from sobook.data import loader, pixels
from sobook.data.image_sets import ImageSet, hold_out
from sobook.errors import ImageError
from tests.data.conftest import save


@pytest.fixture
def colors(rng):
    """A smooth (40, 60, 3) picture, so that JPEG keeps it."""
    y, x = np.mgrid[0:40, 0:60]
    return np.stack([x * 4, y * 6, 255 - x * 2], axis=2).astype(np.uint8)


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

    @pytest.mark.parametrize("content", [b"", b"no picture"])
    def test_missing_or_corrupt_file_is_named(self, tmp_path, content):
        file = tmp_path / "broken.jpg"
        with pytest.raises(ImageError, match="broken.jpg is missing.*sobook prepare"):
            pixels.read_image(file)
        file.write_bytes(content)
        with pytest.raises(ImageError, match="broken.jpg cannot be read.*replace it"):
            pixels.read_image(file)

    def test_truncated_tail_is_an_error_whatever_the_format(self, tmp_path, colors):
        for kind in ("jpg", "png", "webp", "gif", "tif"):
            file = tmp_path / f"cut.{kind}"
            Image.fromarray(colors).save(file)
            file.write_bytes(file.read_bytes()[:-40])
            with pytest.raises(ImageError, match=f"cut.{kind} cannot be read"):
                pixels.read_image(file)

    def test_decompression_bomb_is_refused(self, tmp_path, monkeypatch):
        file = save(tmp_path / "bomb.png", np.zeros((300, 300), np.uint8))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)  # Pillow refuses twice as many
        with pytest.raises(ImageError, match="bomb.png cannot be read.*bomb"):
            pixels.read_image(file)


def left_in(cache) -> list[str]:
    return [path.name for path in cache.iterdir() if path.suffix != ".lock"]


def in_processes(function, *arguments):
    """One new process per argument, all at the same time."""
    spawn = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(len(arguments), mp_context=spawn) as pool:
        return list(pool.map(function, arguments))


def folder_and_content(image_set):
    source = pixels.decode(image_set, 16, progress=False)
    return source.folder, [source[i].tobytes() for i in range(len(source))]


def peak_memory(paths) -> float:
    """MB that decoding and two epochs of batches take, without the pages of the cache."""

    def own():
        lines = Path("/proc/self/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        return int(status["RssAnon"].split()[0]) / 1e3

    start, seen = own(), [own()]
    done = threading.Event()

    def watch():
        while not done.wait(0.002):
            seen.append(own())

    watcher = threading.Thread(target=watch)
    watcher.start()
    some = ImageSet(tuple(paths), np.zeros(len(paths), int), ("a",), "folder", "train")
    source = pixels.decode(some, 128, progress=False)
    for epoch in range(2):
        batches = loader.TrainingBatches(
            source, some.labels, image_size=96, batch_size=30, epoch=epoch
        )
        for _ in loader.training_loader(batches, workers=2):
            pass
    done.set()
    watcher.join()
    return max(seen) - start


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

    def test_images_small_or_hardly_larger_are_kept_when_not_enlarged(self, some_images):
        source = pixels.decode(some_images, 18, enlarge=False, progress=False)
        assert source[0].shape == (20, 30, 3)  # up to 22.5
        assert source[3].shape == (18, 21, 3)  # was (23, 27)
        source = pixels.decode(some_images, 64, enlarge=False, progress=False)
        assert source[3].shape == (23, 27, 3)

    def test_a_training_set_over_budget_is_kept_as_jpeg_and_said_to_be(self, some_images):
        raw = pixels.decode(some_images, 64, progress=False)
        with pytest.warns(UserWarning, match="folder train is kept as JPEG for training"):
            small = pixels.decode(some_images, 64, budget=1000, progress=False)
        assert small.as_jpeg and not raw.as_jpeg and small.folder != raw.folder
        for index in range(len(raw)):
            assert small[index].shape == raw[index].shape
            assert np.abs(small[index].astype(int) - raw[index]).mean() < 6  # noise, the worst case

    def test_a_full_disk_is_refused(self, some_images, monkeypatch, tmp_path):
        monkeypatch.setattr(pixels, "_raw_bytes", lambda *_: 2_500_000_000)
        usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
        monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(ImageError, match="2.5 GB.*make room.*SOBOOK_DATA"):
            pixels.decode(some_images, 17, progress=False)

    def test_the_room_is_that_of_the_set_which_is_decoded(self, some_images, monkeypatch, tmp_path):
        """Of SOP's validation images a fifth of it was announced: the whole set is decoded."""
        some = some_images.subset(range(6))
        each = 16 * 16 * 3
        need = pixels.room_needed(some, 16)
        assert need == pixels.room_needed(some_images, 16) >= 12 * each
        usage = shutil.disk_usage(tmp_path)._replace(free=need - 1)
        monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: usage)
        assert 6 * each <= pixels.room_needed(some, 16) < need  # then only these are
        monkeypatch.undo()
        monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "data"))
        pixels.decode(some, 16, progress=False)
        assert pixels.room_needed(some, 16) == 0

    def test_second_call_reads_the_cache_and_a_changed_file_makes_a_new_one(self, some_images):
        first = pixels.decode(some_images, 16, progress=False)
        assert pixels.decode(some_images, 16, progress=False).folder == first.folder
        save(some_images.paths[0], np.zeros((99, 33, 3), np.uint8))
        changed = pixels.decode(some_images, 16, progress=False)
        assert changed.folder != first.folder and changed[0].max() == 0

    def test_evaluation_never_goes_through_jpeg(self, some_images, monkeypatch):
        """Not even for Stanford Online Products, whose raw pixels take 12 GB."""
        monkeypatch.setattr(pixels, "_raw_bytes", lambda *_: 2 * pixels.RAW_BUDGET)
        source = pixels.decode(some_images, 64, progress=False)
        assert not source.as_jpeg
        expected = pixels.resize(pixels.read_image(some_images.paths[3]), 64)
        np.testing.assert_array_equal(source[3], np.asarray(expected))

    def test_whoever_waits_for_another_process_reads_what_that_one_made(
        self, some_images, tmp_path, monkeypatch
    ):
        """The deterministic twin of the test with two processes below."""
        folder = pixels.decode(some_images, 16, progress=False).folder
        shutil.move(folder, tmp_path / "made")
        monkeypatch.setattr(pixels.Image, "open", None)  # decoding again would fail
        monkeypatch.setattr(pixels, "_raw_bytes", lambda *_: 0)
        with futures.ThreadPoolExecutor(1) as pool, files.lock(Path(f"{folder}.lock")):
            second = pool.submit(pixels.decode, some_images, 16, progress=False)
            with pytest.raises(futures.TimeoutError):
                second.result(timeout=0.2)
            shutil.move(tmp_path / "made", folder)
        assert second.result(timeout=30).folder == folder

    @pytest.mark.slow
    def test_processes_at_the_same_time_share_one_cache(self, some_images):
        found = in_processes(folder_and_content, some_images, some_images)
        assert found == [folder_and_content(some_images)] * 2
        assert left_in(found[0][0].parent) == [found[0][0].name]

    def test_what_a_killed_run_left_is_cleared_away(self, some_images):
        folder = pixels.decode(some_images, 16, progress=False).folder
        partial = folder.with_name(f".{folder.name}.99-ab.partial")
        shutil.move(folder, partial)  # killed before the renaming
        os.truncate(partial / "pixels.bin", 100)
        source = pixels.decode(some_images, 16, progress=False)
        assert os.path.getsize(folder / "pixels.bin") == source.shapes.prod(axis=1).sum() * 3
        assert left_in(folder.parent) == [folder.name]

    def test_images_are_views_of_the_file(self, some_images):
        """So memory in use does not grow with their number."""
        source = pixels.decode(some_images, 16, progress=False)
        assert np.shares_memory(source[2], source._bytes)
        assert isinstance(source._bytes.base, np.memmap)

    @pytest.mark.slow
    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
    def test_memory_in_use_does_not_grow_with_the_number_of_images(self, tmp_path):
        """From 15 to 118 MB of pixels the process's own memory grows by less than 20 MB."""
        paths = [tmp_path / f"{number}.png" for number in range(2400)]
        picture = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
        save(paths[0], picture, compress_level=0)
        for path in paths[1:]:
            shutil.copy(paths[0], path)
        few, many = (in_processes(peak_memory, paths[:count])[0] for count in (300, 2400))
        print(f"peak memory: {few:.0f} MB for 300 pictures, {many:.0f} MB for 2,400")
        assert many < few + 20

    def test_corrupt_image_leaves_nothing_behind(self, some_images, tmp_path):
        some_images.paths[5].write_bytes(b"nothing")
        with pytest.raises(ImageError, match="5.png"):
            pixels.decode(some_images, 16, progress=False)
        assert not left_in(tmp_path / "data" / "cache")


class TestSubsets:
    """A subset reads the cache of the set that it was taken from."""

    def test_every_seed_holds_out_from_one_cache(self, some_images, tmp_path):
        for seed in range(3):
            for part in hold_out(some_images, 0.5, seed):
                source = pixels.decode(part, 16, progress=False)
                for row in range(len(part)):
                    image = pixels.resize(pixels.read_image(part.paths[row]), 16)
                    np.testing.assert_array_equal(source[row], np.asarray(image))
        assert len(left_in(tmp_path / "data" / "cache")) == 1

    def test_subset_of_a_subset_in_any_order(self, some_images):
        part = some_images.subset([7, 3, 11, 5]).subset([2, 0])
        source = pixels.decode(part, 16, progress=False)
        whole = pixels.decode(some_images, 16, progress=False)
        assert source.folder == whole.folder and source.shapes.tolist() == [
            whole.shapes[11].tolist(),
            whole.shapes[7].tolist(),
        ]
        np.testing.assert_array_equal(source[0], whole[11])

    def test_a_few_images_of_a_large_set_are_decoded_alone(self, some_images):
        one = some_images.subset([4])
        alone = pixels.decode(one, 16, progress=False)
        whole = pixels.decode(some_images, 16, progress=False)
        assert alone.folder != whole.folder
        another = some_images.subset([5])
        assert pixels.decode(another, 16, progress=False).folder == whole.folder  # it is there now

    @pytest.mark.parametrize("damage", ["missing", "corrupt"])
    def test_trouble_outside_of_the_subset_does_not_matter(self, some_images, damage, monkeypatch):
        some_images.paths[0].unlink()
        if damage == "corrupt":
            some_images.paths[0].write_bytes(b"nothing")
        part = some_images.subset(range(1, 12))
        own = pixels.decode(part, 16, progress=False)
        assert len(own) == 11
        monkeypatch.setattr(pixels, "read_image", None)  # the whole set is not tried again
        assert pixels.decode(part, 16, progress=False).folder == own.folder


def test_cache_entries_and_clearing(some_images, tmp_path):
    cache = tmp_path / "data" / "cache"
    assert pixels.cache_entries() == {} and pixels.clear_cache() == 0
    kept = pixels.decode(some_images, 16, progress=False).folder
    pixels.decode(some_images, 17, progress=False)
    (cache / "embeddings-0123.npy").write_bytes(bytes(1000))
    (cache / ".pixels-folder-train-77.7-ab.partial").mkdir()  # of a run that was killed
    (cache / ".embeddings-0124.7-ab.partial.npy").write_bytes(bytes(10))  # just being written
    sizes = pixels.cache_entries()
    assert len(sizes) == 5 and not any(name.endswith(".lock") for name in sizes)
    ordered = list(sizes.values())
    assert ordered == sorted(ordered, reverse=True) and ordered[0] > 10_000
    writing = ".embeddings-0124.7-ab.partial.npy"
    with files.lock(Path(f"{kept}.lock")), files.lock(cache / "embeddings-0124.lock"):
        assert pixels.clear_cache() == sum(ordered) - sizes[kept.name] - sizes[writing]
    left = {kept.name, f"{kept.name}.lock", writing, "embeddings-0124.lock"}
    assert {path.name for path in cache.iterdir()} == left
    assert len(pixels.decode(some_images, 17, progress=False)) == 12  # made again
