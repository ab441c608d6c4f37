"""For `pytest --nbmake notebooks/*.ipynb`: its kernels, too, are reached without any network."""

# ruff: noqa: I001 (whether `build` counts as ours would depend on a folder build/ being there)
import nbmake.nb_run
from build import LocalClient  # pytest puts this folder on the path

nbmake.nb_run.NotebookClient = LocalClient
