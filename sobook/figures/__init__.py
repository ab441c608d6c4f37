"""Static figures: proxies, maps of embeddings, pictures and curves."""

from sobook.figures.maps import project  # noqa: F401
from sobook.figures.proxies import *  # noqa: F403
