"""Decoding, and the cache of decoded pixels."""

import multiprocessing
import shutil
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sobook import files
from sobook.data import pixels
from sobook.data.image_sets import ImageSet, hold_out
from sobook.errors import ImageError
from tests.data.conftest import picture, save


def caches(cache: Path) -> list[str]:
    """Names of the caches of pixels; nothing else that has to do with them may lie there."""
    names = {path.name for path in cache.glob("*pixels*") if path.suffix != ".lock"}
    keys = sorted({name.removeprefix("pixels-").partition(".")[0] for name in names})
    assert names == {f"pixels-{key}.{suffix}" for key in keys for suffix in ("npz", "bin")}
    return keys


def content(image_set: ImageSet) -> list[bytes]:
    return [image.tobytes() for image in pixels.decode(image_set, 16, progress=False)]


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
            np.testing.assert_array_equal(source.band(index, 3, 5), expected[3:8])

    def test_images_small_or_hardly_larger_are_kept_when_not_enlarged(self, some_images):
        source = pixels.decode(some_images, 18, enlarge=False, progress=False)
        assert source[0].shape == (20, 30, 3)  # up to 22.5
        assert source[3].shape == (18, 21, 3)  # was (23, 27)
        source = pixels.decode(some_images, 64, enlarge=False, progress=False)
        assert source[3].shape == (23, 27, 3)

    def test_only_a_training_set_over_budget_is_kept_as_jpeg(self, some_images):
        raw = pixels.decode(some_images, 64, progress=False)
        fits = pixels.decode(some_images, 64, budget=10**6, progress=False)
        with pytest.warns(UserWarning, match="folder train is kept as JPEG"):
            small = pixels.decode(some_images, 64, budget=1000, progress=False)
        assert (raw.as_jpeg, fits.as_jpeg, small.as_jpeg) == (False, False, True)
        for index in range(len(raw)):
            assert np.abs(small[index].astype(int) - raw[index]).mean() < 6  # noise, the worst case
            np.testing.assert_array_equal(small.band(index, 3, 5), small[index][3:8])

    def test_a_cached_decode_opens_no_picture(self, some_images, opened):
        """Nor does it for a subset, or where the budget decides between raw and JPEG."""
        parts = (some_images, some_images.subset(range(6)))
        for budget in (None, 10**6):
            pixels.decode(some_images, 16, budget=budget, progress=False)
        assert {*some_images.paths} <= {*opened}
        opened.clear()
        for part in parts:
            for budget in (None, 10**6):
                pixels.decode(part, 16, budget=budget, progress=False)[0]
        assert opened and not {*some_images.paths} & {*opened}

    def test_content_makes_the_cache_and_not_the_name(self, some_images, own_cache, tmp_path):
        pixels.decode(some_images, 16, progress=False)
        moved = [path.rename(tmp_path / f"moved {path.name}") for path in some_images.paths]
        other = ImageSet(tuple(moved), some_images.labels, tuple("abcd"), "other", "test")
        pixels.decode(other, 16, progress=False)
        assert len(caches(own_cache)) == 1
        save(moved[0], np.zeros((99, 33, 3), np.uint8))
        assert pixels.decode(other, 16, progress=False)[0].max() == 0
        assert len(caches(own_cache)) == 2

    def test_memory_is_read_and_not_mapped(self, some_images):
        source = pixels.decode(some_images, 16, progress=False)
        maps = Path("/proc/self/maps")
        source[0], source[5]
        if maps.exists():
            assert str(source.file.with_suffix(".bin")) not in maps.read_text()

    def test_whoever_waits_for_another_process_reads_what_that_one_made(
        self, some_images, tmp_path, monkeypatch
    ):
        """The deterministic twin of the test with two processes below."""
        file = pixels.decode(some_images, 16, progress=False).file
        shutil.move(file, tmp_path / "made")
        monkeypatch.setattr(pixels, "read_image", None)  # decoding again would fail
        with futures.ThreadPoolExecutor(1) as pool, files.lock(file.with_suffix(".lock")):
            second = pool.submit(pixels.decode, some_images, 16, progress=False)
            with pytest.raises(futures.TimeoutError):
                second.result(timeout=0.2)
            shutil.move(tmp_path / "made", file)
        assert second.result(timeout=30).file == file

    @pytest.mark.slow
    def test_processes_at_the_same_time_share_one_cache(self, some_images, own_cache):
        spawn = multiprocessing.get_context("spawn")
        with futures.ProcessPoolExecutor(2, mp_context=spawn) as pool:
            made = list(pool.map(content, [some_images] * 2))
        assert made == [content(some_images)] * 2 and len(caches(own_cache)) == 1

    @pytest.mark.parametrize("trouble", ["No such file", "cannot identify"])
    def test_a_bad_picture_leaves_nothing_behind(self, some_images, own_cache, trouble):
        some_images.paths[5].unlink()
        if trouble != "No such file":
            some_images.paths[5].write_bytes(b"nothing")
        with pytest.raises(ImageError, match=f"5.png.*{trouble}"):
            pixels.decode(some_images, 16, progress=False)
        assert not caches(own_cache)


class TestSubsets:
    """A subset reads the cache of the set that it was taken from."""

    def test_every_seed_holds_out_from_one_cache(self, some_images, own_cache):
        for seed in range(3):
            for part in hold_out(some_images, 0.5, seed):
                source = pixels.decode(part, 16, progress=False)
                for row in range(len(part)):
                    image = pixels.resize(pixels.read_image(part.paths[row]), 16)
                    np.testing.assert_array_equal(source[row], np.asarray(image))
        assert len(caches(own_cache)) == 1

    def test_subset_of_a_subset_in_any_order(self, some_images):
        part = some_images.subset([7, 3, 11, 5]).subset([2, 0])
        source = pixels.decode(part, 16, progress=False)
        everything = pixels.decode(some_images, 16, progress=False)
        assert source.file == everything.file and len(source) == 2
        for row, original in enumerate((11, 7)):
            np.testing.assert_array_equal(source[row], everything[original])

    def test_a_few_images_of_a_large_set_are_decoded_alone(self, some_images):
        alone = pixels.decode(some_images.subset([4]), 16, progress=False)
        everything = pixels.decode(some_images, 16, progress=False)
        assert alone.file != everything.file
        another = pixels.decode(some_images.subset([5]), 16, progress=False)
        assert another.file == everything.file  # it is there now


def test_fingerprint_is_that_of_content_and_settings(tmp_path, own_cache):
    one = ImageSet((picture(tmp_path / "a.png"),), np.zeros(1, int), ("a",), "x", "train")
    same = ImageSet((tmp_path / "b.png",), np.zeros(1, int), ("b",), "y", "test")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    assert pixels.fingerprint(one, 16) == pixels.fingerprint(same, 16)
    assert pixels.fingerprint(one, 16) != pixels.fingerprint(one, 17)
