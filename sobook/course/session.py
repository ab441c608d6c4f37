"""First cell of every notebook: seeds, threads, figure format, and the mode.

Quick mode (the default) is made for a laptop and never touches the network; full mode is made for
a GPU and the real benchmarks. ``SOBOOK_MODE`` chooses.
"""

import hashlib
import json
import os
import random
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import sobook
from sobook import files, training
from sobook.errors import RunError, check_choice
from sobook.training.config import TrainConfig, run_key

if TYPE_CHECKING:  # timm and torchvision take seconds, and first pictures need neither
    from sobook.training.run import Run

_MAX_THREADS = 8  # small images and small models gain nothing from more
_DPI = 88  # keeps a notebook with all its figures below 1 MB
_COLAB = """\
On Colab, runs vanish with this machine. To keep copies on your Drive, and to resume after a \
disconnect, run this first and then this cell again:
    from google.colab import drive; drive.mount('/content/drive')
    !mkdir -p /content/drive/MyDrive/sobook
    %env SOBOOK_MIRROR=/content/drive/MyDrive/sobook"""


@dataclass(frozen=True)
class Session:
    """Mode, machine and seed of a notebook."""

    mode: str
    device: str
    data_root: Path
    seed: int

    @property
    def quick(self) -> bool:
        return self.mode == "quick"

    def pick(self, quick: Any, full: Any) -> Any:
        """Return the first value in quick mode, the second in full mode."""
        return quick if self.quick else full

    def config(self, **changes) -> TrainConfig:
        """Settings that the notebooks train with in this mode, with some of them changed.

        Quick: the aviary and the micro encoder, a minute or two on two cores. Full: the recipe
        "cub200" of data/recipes.toml, with DeiT-Small distilled.
        """
        if self.quick:
            return TrainConfig(seed=self.seed).replace(**changes)
        workers = min(files.available_cores(), _MAX_THREADS)
        machine = {"seed": self.seed, "workers": workers, "precision": "float32"}
        if self.device == "cuda":  # a T4 only emulates bfloat16
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            machine["precision"] = "bfloat16" if native else "float16"
        return TrainConfig.recipe("cub200", **(machine | changes))

    def fit(self, config: TrainConfig, *, retrain: bool = False) -> "Run":
        """Open the run of these settings, shipped with the course or trained before; else train.

        The two runs of notebook 00 are shipped, so that every notebook opens with its result.

        Args:
            config: from `config`.
            retrain: train anew even what is shipped, two minutes on two cores. For all notebooks:
                set ``SOBOOK_RETRAIN=1``.

        Raises:
            RunError: a file of a shipped run was changed.
        """
        manifest = files.shipped("quick_runs/manifest.json")
        shipped = json.loads(manifest.read_text(encoding="utf-8"))
        name = next((n for n in shipped if shipped[n]["run_key"] == run_key(config)), None)
        retrain = retrain or bool(os.environ.get("SOBOOK_RETRAIN"))
        if name is None or retrain or (training.Run.open(config).path / "config.json").is_file():
            return training.fit(config)
        folder = manifest.with_name(name)
        for file, digest in shipped[name]["sha256"].items():
            if hashlib.sha256((folder / file).read_bytes()).hexdigest() != digest:
                raise RunError(f"{folder / file} was changed: reinstall sobook.")
        how = "session.fit(config, retrain=True), two minutes on two cores"
        print(f"{name}: the shipped run. Retrain it yourself: {how}.")
        return training.Run(folder, config)

    def __str__(self) -> str:
        cpu = f"CPU, {torch.get_num_threads()} threads"
        machine = torch.cuda.get_device_name() if self.device == "cuda" else cpu
        versions = f"torch {torch.__version__} · timm {metadata.version('timm')}"
        how = f"{self.mode} mode · {machine} · seed {self.seed}"
        return f"sobook {sobook.__version__} · {versions} · {how}"


def setup(seed: int = 0) -> Session:
    """Seed Python, NumPy and torch, set threads and figures, print what the notebook runs on.

    Raises:
        SobookError: ``SOBOOK_MODE`` is neither quick nor full, or no seed.
    """
    seed = TrainConfig(seed=seed).seed  # checked there
    mode = os.environ.get("SOBOOK_MODE") or "quick"
    check_choice("SOBOOK_MODE", mode, ("quick", "full"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    session = Session(mode, device, files.data_root(), seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # seeds the GPUs as well
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(files.available_cores(), _MAX_THREADS))
    _prepare_figures()
    print(session)
    if "google.colab" in sys.modules and not os.environ.get("SOBOOK_MIRROR"):
        print(_COLAB)
    if not session.quick and device == "cpu":
        print("Full mode is made for a GPU, and there is none here: expect hours, not minutes.")
    return session


def notebook_shell():
    """IPython's shell in the kernel of a notebook, else None."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell if hasattr(shell, "kernel") else None


def _prepare_figures() -> None:
    """The book's style for a reader's own figures; in a notebook, inline and of moderate size."""
    import matplotlib.pyplot as plt

    from sobook.figures.style import use_style

    with use_style():
        style = {key: value for key, value in plt.rcParams.items() if key != "backend"}
    plt.rcParams.update(style | {"figure.dpi": _DPI})
    if shell := notebook_shell():
        shell.run_line_magic("matplotlib", "inline")
