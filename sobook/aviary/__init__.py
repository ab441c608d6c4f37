"""The aviary: drawn birds, a benchmark that any machine can make, and the micro encoder for it.

Start with `species`, which decides what a bird looks like; `art` and `scene` draw it.
"""

from sobook import lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, {})
