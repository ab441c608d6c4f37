"""Near matches for typos, which the messages of errors name."""

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
    [
        ("cub20", "cub200"),
        ("aviari", "aviary"),
        ("car196", "cars196"),
        ("inshop ", "inshop"),
        ("SOP", "sop"),
    ],
)
def test_suggest_names_the_nearest(word, near):
    choices = ["aviary", "cub200", "cars196", "sop", "inshop", "inshop-gallery"]
    assert errors.suggest(word, iter(choices)) == f" Did you mean {near!r}?"


@pytest.mark.parametrize("word", ["zebra", "", None, 7])
def test_suggest_is_silent_where_nothing_is_near(word):
    assert errors.suggest(word, ["aviary", "cub200"]) == ""


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (np.int64(8), int, 8),
        (np.uint8(8), float, 8.0),
        (np.float32(0.1), float, 0.1),  # as printed, not 0.10000000149
        (np.float16(0.1), float, 0.1),
        (np.float64(1e-3), float, 1e-3),
        (np.array(3), int, 3),
        (torch.tensor(3), int, 3),
        (8.0, int, 8),
        (np.float64(8), int | None, 8),
        (1, float, 1.0),
        (np.bool_(True), bool, True),
        (np.str_("cosine"), str, "cosine"),
        (Path("a/b"), str | None, "a/b"),
        (None, str | None, None),
        (10, int | float, 10),
        (0.5, int | float, 0.5),
        (1.0, int | float, 1.0),
        ({"seed": np.int64(1)}, dict[str, int], {"seed": 1}),
        (["method"], tuple[str, ...] | None, ("method",)),
    ],
)
def test_plain_takes_what_can_be_meant(value, kind, expected):
    found = plain("setting", value, kind)
    assert found == expected and type(found) is type(expected)
    json.dumps(found)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("none", int | None, "setting is 'none': it must be a whole number or None."),
        ("8", int, "setting is '8': it must be a whole number."),
        (None, float, "setting is None: it must be a finite number."),
        (float("nan"), float, "setting is nan"),
        (float("inf"), float, "setting is inf"),
        (10**400, float, "setting is 1000.*: it must be a finite number"),
        (np.float32("nan"), float, "setting is nan"),
        (8.5, int, "setting is 8.5: it must be a whole number."),
        (True, int, "setting is True: it must be a whole number."),
        (np.bool_(True), float, "setting is True"),
        (1, bool, "setting is 1: it must be True or False."),
        ("no", bool, "setting is 'no'"),
        (3, str, "setting is 3: it must be text."),
        (b"x", str, "setting is b'x'"),
        (1j, float, r"setting is 1j"),
        ([8], int, r"setting is \[8\]"),
        (np.array([8]), int, r"setting is array\(\[8\]\)"),
        ({"seed": "one"}, dict[str, int], "setting.seed is 'one': it must be a whole number."),
        ({1: 1}, dict[str, int], "a key of setting is 1: it must be text."),
        ("seed=1", dict[str, int], "setting is 'seed=1'"),
        (["a", 1], tuple[str, ...], r"setting\[1\] is 1: it must be text."),
        (list(range(1000)), int, r"setting is \[0, 1.{,90}: it must be"),
    ],
)
def test_plain_refuses_the_rest_in_one_sentence(value, kind, message):
    with pytest.raises(SobookError, match=message):
        plain("setting", value, kind)


def test_types_of_a_dataclass():
    @dataclass(frozen=True)
    class Settings:
        epochs: int = 8
        options: dict[str, int] = field(default_factory=dict)

    settings = Settings(np.int64(3), {"seed": np.int32(1)})
    errors.check_types(settings)
    assert repr(settings).endswith("Settings(epochs=3, options={'seed': 1})")
    with pytest.raises(SobookError, match="epochs is None"):
        errors.check_types(Settings(None))
