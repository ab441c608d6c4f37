"""Near matches for typos, which the messages of errors name."""

import pytest

from sobook import errors


@pytest.mark.parametrize(
    "word, near",
    [("cub20", "cub200"), ("aviari", "aviary"), ("car196", "cars196"), ("inshop ", "inshop")],
)
def test_suggest_names_the_nearest(word, near):
    choices = ["aviary", "cub200", "cars196", "sop", "inshop", "inshop-gallery"]
    assert errors.suggest(word, iter(choices)) == f" Did you mean {near!r}?"


@pytest.mark.parametrize("word", ["zebra", "", None, 7])
def test_suggest_is_silent_where_nothing_is_near(word):
    assert errors.suggest(word, ["aviary", "cub200"]) == ""
