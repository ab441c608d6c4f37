"""For `pytest --nbmake notebooks/*.ipynb`: its kernels, too, are reached without any network."""

# ruff: noqa: I001 (whether `build` counts as ours would depend on a folder build/ being there)
import functools

import nbmake.nb_run
from build import LocalKernel  # pytest puts this folder on the path
from nbclient import NotebookClient

nbmake.nb_run.NotebookClient = functools.partial(NotebookClient, kernel_manager_class=LocalKernel)
