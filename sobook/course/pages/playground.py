"""The playground: three to eight proxies on a circle or a sphere, moved by hand and by descent."""

from __future__ import annotations

from sobook.course.pages.page import Page, render
from sobook.errors import SobookError, check_fields

_SETTINGS = {"num_classes": 4, "dim": 2, "so_weight": 20.0, "margin": 0.1}
_SETTINGS |= {"threshold": 0.0, "scale": 32.0, "seed": 0}


def page(**settings) -> Page:
    """The playground as a page that needs no kernel and no network.

    Args:
        settings: num_classes (3 to 8), dim (2 or 3), so_weight, margin, threshold, scale, seed.

    Raises:
        SobookError: an unknown setting, or one out of its range.
    """
    check_fields("the playground", settings, _SETTINGS)
    values = _SETTINGS | settings
    shown = 3 <= values["num_classes"] <= 8 and values["dim"] in (2, 3)
    if not shown or values["so_weight"] < 0 or values["scale"] <= 0:
        raise SobookError(
            "the playground shows 3 to 8 classes in 2 or 3 dimensions, so_weight not negative and "
            "scale positive."
        )
    source = render("playground", "Proxy playground", values, scripts=("numerics.js",))
    return Page(source, title="Proxy playground")
