"""For `pytest --nbmake`: of the solved notebooks only what their exercises need is run.

The kernels, too, are reached without any network.
"""

# ruff: noqa: I001 (whether `build` counts as ours would depend on a folder build/ being there)
import nbmake.nb_run
import build  # pytest puts this folder on the path


class Client(build.LocalClient):
    """Runs a notebook; one with solutions is shortened first."""

    def __init__(self, notebook, **options):
        if any("solution" in build.tags(cell) for cell in notebook.cells):
            build.shorten(notebook)
        super().__init__(notebook, **options)


nbmake.nb_run.NotebookClient = Client
