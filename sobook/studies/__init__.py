"""Studies: grids of training runs, gathered into tables, figures and paired comparisons.

Start with `study`; `frozen` gives the trainer features instead of images, `baselines` other losses.
"""

from sobook import lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, {})
