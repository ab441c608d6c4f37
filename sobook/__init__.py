"""sobook: deep metric learning with soft orthogonal proxies, as a course and a small package.

The tree is the table of contents: `losses`, `geometry`, `retrieval`, `statistics`, `encoder`,
`embedding`, `data`, `training` and `figures` are what the course teaches; `aviary`, `studies`,
`course`, `interactive`, `export` and `cli` serve it; `errors`, `files` and `lazy` carry both.
"""

from typing import TYPE_CHECKING

from sobook import files, lazy

files.prepare_libraries()  # before any of them is imported

if TYPE_CHECKING:
    from sobook.data.image_sets import load as load, prepare as prepare
    from sobook.embedding import embed as embed
    from sobook.encoder import Encoder as Encoder
    from sobook.errors import SobookError as SobookError
    from sobook.geometry import describe as describe
    from sobook.losses import (
        ProxyAnchor as ProxyAnchor,
        SoftOrthogonalProxyAnchor as SoftOrthogonalProxyAnchor,
        soft_orthogonality as soft_orthogonality,
    )
    from sobook.retrieval import evaluate as evaluate, nearest_neighbors as nearest_neighbors
    from sobook.training import Run as Run, TrainConfig as TrainConfig, fit as fit

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    {
        "sobook.data.image_sets": "load prepare",
        "sobook.embedding": "embed",
        "sobook.encoder": "Encoder",
        "sobook.errors": "SobookError",
        "sobook.geometry": "describe",
        "sobook.losses": "ProxyAnchor SoftOrthogonalProxyAnchor soft_orthogonality",
        "sobook.retrieval": "evaluate nearest_neighbors",
        "sobook.training": "Run TrainConfig fit",
    },
)
