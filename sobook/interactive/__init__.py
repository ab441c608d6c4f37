"""Pages that need a browser and nothing else: explorer, playground and search."""

from sobook import lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, {})
