"""Training: settings in, a run folder out.

Start with `config` and `loop.fit`; `data` checks the image sets, `trainer` does a step, `run` reads
and writes the folder, `processes` makes the loss of several processes that of their joint batch,
`heads` trains a head alone on frozen features.
"""

from typing import TYPE_CHECKING

from sobook import lazy

if TYPE_CHECKING:
    from sobook.training.config import TrainConfig as TrainConfig
    from sobook.training.heads import HeadConfig as HeadConfig, fit_head as fit_head
    from sobook.training.loop import dry_run as dry_run, evaluate_run as evaluate_run, fit as fit
    from sobook.training.run import Run as Run

__getattr__, __dir__, __all__ = lazy(
    __name__,
    config="TrainConfig",
    heads="HeadConfig fit_head",
    loop="dry_run evaluate_run fit",
    run="Run",
)
