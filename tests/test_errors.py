"""Near matches for typos, and settings as plain Python."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from sobook import errors
from sobook.errors import SobookError, plain


@pytest.mark.parametrize(
    "word, near",
    [("cub20", "cub200"), ("inshop ", "inshop"), ("SOP", "sop"), ("zebra", ""), ("", "")],
)
def test_suggest_names_the_nearest(word, near):
    suggested = errors.suggest(word, iter(["aviary", "cub200", "sop", "inshop"]))
    assert suggested == (f" Did you mean {near!r}?" if near else "")


def test_choices_and_fields_are_listed_with_the_near_match():
    errors.check_choice("schedule", "cosine", ("cosine", "constant"))
    errors.check_fields("TrainConfig", ["seed"], ["epochs", "seed"])
    with pytest.raises(SobookError, match="cosine or constant.*'cosine'"):
        errors.check_choice("schedule", "cosin", ("cosine", "constant"))
    with pytest.raises(
        SobookError, match="of TrainConfig 'epoch': choose epochs or seed.*'epochs'"
    ):
        errors.check_fields("TrainConfig", ["epoch"], ["epochs", "seed"])
    with pytest.raises(SobookError, match="of sop 'size': there is none"):
        errors.check_fields("sop", ["size"], ())


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (np.int64(8), int, 8),
        (np.float32(0.1), float, 0.1),  # as printed, not 0.10000000149
        (torch.tensor(3), int, 3),
        (8.0, int, 8),
        (np.bool_(True), bool, True),
        (Path("a/b"), str | None, "a/b"),
        (None, str | None, None),
        (1.0, int | float, 1.0),
        ({"seed": np.int64(1)}, dict[str, int], {"seed": 1}),
        (["method"], tuple[str, ...] | None, ("method",)),
    ],
)
def test_plain_converts(value, kind, expected):
    converted = plain("setting", value, kind)
    assert converted == expected and type(converted) is type(expected)
    json.dumps(converted)


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        ("none", int | None, "'none'.*whole number or None"),
        ("8", int, "whole number"),
        (float("nan"), float, "nan"),
        (10**400, float, "finite"),
        (True, int, "whole number"),
        (1, bool, "True or False"),
        ({"seed": "one"}, dict[str, int], "setting.seed"),
        ({1: 1}, dict[str, int], "a key of setting"),
        ("seed=1", dict[str, int], "table"),
        (["a", 1], tuple[str, ...], r"setting\[1\]"),
    ],
)
def test_plain_refuses(value, kind, words):
    with pytest.raises(SobookError, match=words):
        plain("setting", value, kind)


def test_types_of_a_dataclass():
    @dataclass(frozen=True)
    class Settings:
        epochs: int = 8
        options: dict[str, int] = field(default_factory=dict)

    settings = Settings(np.int64(3), {"seed": np.int32(1)})
    errors.check_types(settings)
    assert repr(settings).endswith("Settings(epochs=3, options={'seed': 1})")
    with pytest.raises(SobookError, match="epochs"):
        errors.check_types(Settings(None))
