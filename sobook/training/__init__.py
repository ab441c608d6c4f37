"""Training: settings in, a run folder out.

Start with `config` and `loop.fit`; `run_folder` reads and writes the folder, `distributed` makes
the loss of several processes that of their joint batch.
"""

from typing import TYPE_CHECKING

from sobook import lazy

if TYPE_CHECKING:
    from sobook.training.config import TrainConfig as TrainConfig
    from sobook.training.loop import evaluate_run as evaluate_run, fit as fit
    from sobook.training.run import Run as Run

__getattr__, __dir__, __all__ = lazy(
    __name__,
    config="TrainConfig",
    loop="evaluate_run fit",
    run="Run",
)
