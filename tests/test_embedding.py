"""Embedding image sets: order, the cache, and processes that want the same."""

import dataclasses
import threading
import time

import numpy as np
import pytest
import torch

from sobook import files
from sobook.course.aviary import micro
from sobook.data import image_sets, pixels
from sobook.embedding import embed
from sobook.encoder import Encoder
from sobook.retrieval import evaluate

MICRO = micro.NAME


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return Encoder.create(MICRO, dim=16, weights="micro").eval()


@pytest.fixture
def birds(tiny_aviary, tiny_options):
    return image_sets.load("aviary", "test", tiny_aviary, **tiny_options)


def test_shape_order_and_batch_size(encoder, birds):
    one = embed(encoder, birds, cache=False, progress=False, batch_size=1)
    many = embed(encoder, birds, cache=False, progress=False, batch_size=7)
    assert many.shape == (24, 16) and many.dtype == np.float32
    np.testing.assert_allclose(one, many, atol=1e-5)


def test_cache_is_keyed_by_weights(encoder, birds):
    first = embed(encoder, birds, progress=False)
    np.testing.assert_array_equal(embed(encoder, birds, progress=False), first)
    other = Encoder.create(MICRO, dim=16, weights=None)
    assert not np.allclose(embed(other, birds, progress=False), first)


def test_subsets_read_the_cache_of_the_whole(encoder, birds, monkeypatch):
    whole = embed(encoder, birds, progress=False)
    part = birds.subset([20, 3, 7, 4, 11])
    half = part.subset(np.array([True, False, True, False, True]))  # 20, 7, 11
    monkeypatch.setattr(Encoder, "forward", None)  # from here on nothing can be embedded
    np.testing.assert_array_equal(embed(encoder, part, progress=False), whole[[20, 3, 7, 4, 11]])
    np.testing.assert_array_equal(embed(encoder, half, progress=False), whole[[20, 7, 11]])
    with pytest.raises(TypeError):
        embed(encoder, half, cache=False, progress=False)


def test_subset_is_embedded_where_the_whole_is_not(encoder, birds, tmp_path, monkeypatch):
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))
    gone = birds.paths[0].with_name("gone.png")
    birds = dataclasses.replace(birds, paths=(gone, *birds.paths[1:]))
    found = embed(encoder, birds.subset([5, 2]), progress=False)
    assert found.shape == (2, 16) and not np.allclose(found[0], found[1])


def test_micro_features_beat_random_ones(tmp_path):
    """On species of four genera: enough for chance to be far away."""
    options = {"species": 40, "images_per_species": 10, "size": 64}
    birds = image_sets.load("aviary", "test", tmp_path, **options)
    recall = {}
    for weights in ("micro", None):
        found = embed(Encoder.create(MICRO, weights=weights), birds, progress=False)
        recall[weights] = evaluate(found, birds.labels, ks=(1,)).recall[1]
    assert recall["micro"] > recall[None] + 0.1


def test_mode_is_restored_even_after_an_error(birds, monkeypatch):
    encoder = Encoder.create(MICRO, dim=8, weights="micro").train()
    embed(encoder, birds, cache=False, progress=False)
    assert encoder.training
    monkeypatch.setattr(encoder, "forward", lambda images: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        embed(encoder, birds, cache=False, progress=False)
    assert encoder.training


def test_of_two_that_want_the_same_one_embeds(encoder, birds, tmp_path, monkeypatch, capfd):
    """Two threads stand for two processes: a lock file is between either kind."""
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))
    forward, calls, begun = Encoder.forward, [], threading.Event()

    def slow(self, images):
        calls.append(threading.current_thread().name)
        begun.set()
        time.sleep(0.3)
        return forward(self, images)

    monkeypatch.setattr(Encoder, "forward", slow)
    found = {}

    def work():
        found[threading.current_thread().name] = embed(encoder, birds, progress=False)

    first, second = (threading.Thread(target=work, name=name) for name in ("first", "second"))
    first.start()
    assert begun.wait(30)
    second.start()
    first.join(), second.join()
    assert calls == ["first"]  # 24 images are one batch
    np.testing.assert_array_equal(found["first"], found["second"])
    assert "another process is embedding the same images" in capfd.readouterr().err
    kept = sorted(path.suffix for path in (tmp_path / "cache").glob("embeddings-*"))
    assert kept.count(".npy") == 1
    assert "embeddings" in {name.split("-")[0] for name in pixels.cache_entries(tmp_path)}


def test_a_result_that_cannot_be_kept_is_returned_all_the_same(
    encoder, birds, tmp_path, monkeypatch
):
    expected = embed(encoder, birds, cache=False, progress=False)
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    sentence = "are not kept: .* could not be written .No space left on device.: make room"
    with pytest.warns(UserWarning, match=sentence):
        np.testing.assert_array_equal(embed(encoder, birds, progress=False), expected)
    left = [path for path in (tmp_path / "cache").glob("*embeddings-*") if path.suffix != ".lock"]
    assert left == []


def test_a_cache_that_may_only_be_read_is_read(encoder, birds, tmp_path, monkeypatch):
    """As where a teacher shares one; nothing there is locked or written."""
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))
    first = embed(encoder, birds, progress=False)
    monkeypatch.setattr(files, "lock", None)
    monkeypatch.setattr(files, "replacing", None)
    np.testing.assert_array_equal(embed(encoder, birds, progress=False), first)


@pytest.mark.parametrize("content", [b"", b"half", b"\x93NUMPY"])
def test_a_damaged_cache_is_made_again(encoder, birds, tmp_path, monkeypatch, content):
    """As after a power cut."""
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))
    first = embed(encoder, birds, progress=False)
    (file,) = (tmp_path / "cache").glob("embeddings-*.npy")
    file.write_bytes(content)
    np.testing.assert_array_equal(embed(encoder, birds, progress=False), first)
    np.testing.assert_array_equal(np.load(file), first)
