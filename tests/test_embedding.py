"""Embedding image sets: order, the cache, and processes that want the same."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from sobook import files
from sobook.course.aviary import micro_deit
from sobook.data import image_sets
from sobook.embedding import embed
from sobook.encoder import Encoder

MICRO = micro_deit.NAME


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
    part = embed(encoder, birds, progress=False, rows=slice(3, 9))
    np.testing.assert_allclose(part, many[3:9], atol=1e-5)


CHANGES = {
    "mean": lambda encoder: encoder.mean.mul_(0.5),
    "activation": lambda encoder: setattr(encoder.backbone.blocks[0].mlp, "act", torch.nn.ReLU()),
    "weights": lambda encoder: encoder.head[1].weight.data.neg_(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_cache_is_keyed_by_all_that_embeddings_depend_on(birds, change):
    encoder = Encoder.create(MICRO, dim=16, weights="micro")
    first = embed(encoder, birds, progress=False)
    np.testing.assert_array_equal(embed(encoder, birds, progress=False), first)
    CHANGES[change](encoder)
    again = embed(encoder, birds, progress=False)
    assert not np.allclose(again, first)
    np.testing.assert_array_equal(again, embed(encoder, birds, cache=False, progress=False))


def test_autocast_around_it_changes_nothing(encoder, birds, tmp_path, monkeypatch):
    exact = embed(encoder, birds, cache=False, progress=False)
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(embed(encoder, birds, progress=False), exact)


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
        calls.append(len(images))
        begun.set()
        time.sleep(0.3)
        return forward(self, images)

    monkeypatch.setattr(Encoder, "forward", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(embed, encoder, birds, progress=False)
        assert begun.wait(30)
        second = pool.submit(embed, encoder, birds, progress=False)
    np.testing.assert_array_equal(first.result(), second.result())
    assert calls == [24]  # one batch
    assert "waiting for another process" in capfd.readouterr().err


def test_a_cache_that_may_only_be_read_is_read(encoder, birds, tmp_path, monkeypatch):
    """As where a teacher shares one; nothing there is locked or written."""
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))
    first = embed(encoder, birds, progress=False)
    monkeypatch.setattr(files, "lock", None)
    monkeypatch.setattr(files, "replacing", None)
    np.testing.assert_array_equal(embed(encoder, birds, progress=False), first)
