"""The playground: three to eight proxies on a circle or a sphere, moved by hand and by descent."""

from __future__ import annotations

from sobook.course.pages.page import Page, render
from sobook.errors import SobookError, check_fields

_SETTINGS = {
    "num_classes": 4,
    "dim": 2,
    "so_weight": 20.0,
    "margin": 0.1,
    "threshold": 0.0,
    "scale": 32.0,
    "seed": 0,
}


def page(**settings) -> Page:
    """The playground as a page that needs no kernel and no network.

    Args:
        settings: num_classes (3 to 8), dim (2 or 3), so_weight, margin, threshold,
            scale, seed.

    Raises:
        SobookError: an unknown setting, or one out of its range.
    """
    check_fields("the playground", settings, _SETTINGS)
    values = _SETTINGS | settings
    if not 3 <= values["num_classes"] <= 8 or values["dim"] not in (2, 3):
        raise SobookError("the playground shows 3 to 8 classes in 2 or 3 dimensions.")
    if values["so_weight"] < 0 or values["scale"] <= 0:
        raise SobookError("so_weight must not be negative, scale must be positive.")
    source = render("playground", "Proxy playground", values, scripts=("numerics.js",))
    return Page(source, title="Proxy playground")
