"""Static figures: what a run, its proxies, its embeddings and its retrievals look like.

Every function takes plain arrays or tensors (or mappings from a method's name to them, PA first)
and returns one `Figure`, which carries a sentence of alternative text: ``alt_text(figure)``.
"""

from typing import TYPE_CHECKING

from sobook import lazy

if TYPE_CHECKING:
    from sobook.figures.curves import *  # noqa: F403
    from sobook.figures.embeddings import *  # noqa: F403
    from sobook.figures.pictures import *  # noqa: F403
    from sobook.figures.proxies import *  # noqa: F403
    from sobook.figures.style import *  # noqa: F403

__getattr__, __dir__, __all__ = lazy(
    __name__,
    curves="training_curves recall_curves interval_plot movement_plot paired_differences",
    embeddings="project quality place align embedding_maps map_panel spheres",
    pictures="contact_sheet retrieval_wall retrieval_comparison pick_queries "
    "attention_maps split_chart",
    proxies="class_order proxy_heatmaps angle_histogram spectra "
    "proxy_ribbons confusion_vs_cosine attribute_lens",
    style="COLORS PALETTE Figure alt_text finish method_color new_figure use_style",
)
