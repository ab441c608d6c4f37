"""A copy of each checkpoint in ``$SOBOOK_MIRROR``: a mounted Drive, which outlives the machine.

Such a drive has no locks, uploads files in any order and some not at all, and can disappear. So no
file there is ever changed: a copy is one zip file of the run folder, named by how far the run was
and by its checksum, and what does not have that checksum is not taken. The folder of a run's copies
is named by its settings, wherever the run folder is. One machine at a time may train a run.
"""

import hashlib
import os
import shutil
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import IO

from sobook import files
from sobook.errors import RunError, SobookError, first_line
from sobook.training import run as run_folder
from sobook.training.run import Run

_KEPT = 2  # copies of a run: should the newest not have arrived, the one before has


def root() -> Path | None:
    """``$SOBOOK_MIRROR``, where it is set."""
    chosen = os.environ.get("SOBOOK_MIRROR")
    return Path(os.path.expanduser(chosen)) if chosen else None


def check_mounted() -> None:
    """Refuse a folder that is not there. Nobody makes it: a Drive mounts over no other folder."""
    if (folder := root()) and not folder.is_dir():
        raise RunError(
            f"SOBOOK_MIRROR: {folder} is not there: mount its drive, make the folder, or unset "
            "SOBOOK_MIRROR."
        )


class Mirror:
    """The copies of a run; does nothing without ``$SOBOOK_MIRROR``, or in a process that helps."""

    def __init__(self, run: Run):
        self.run, self.failing = run, False
        self.folder: Path | None = None
        if (chosen := root()) and os.environ.get("RANK", "0") == "0":
            self.folder = chosen / run.config.replace(run_dir=None).folder().name

    def keep(self) -> None:
        """Copy the run folder as it is now. Where that fails, a warning says so, once."""
        if self.folder is None:
            return
        try:
            self._copy(self.folder)
            self.failing = False
        except (OSError, SobookError) as error:
            if not self.failing:
                warnings.warn(
                    f"the checkpoint could not be copied to {self.folder}, and is only in "
                    f"{self.run.path}: {first_line(error, 300)} Training continues, and copies "
                    "the next one.",
                    stacklevel=2,
                )
            self.failing = True

    def _copy(self, folder: Path) -> None:
        check_mounted()
        progress = run_folder.progress(self.run.path)
        if self.run.finished and any(folder.glob(f"{progress}-*.zip")):
            return
        with tempfile.TemporaryFile(dir=self.run.path) as packed:  # no kill leaves it behind
            with zipfile.ZipFile(packed, "w", strict_timestamps=False) as archive:
                for name in run_folder.FILES:
                    if (self.run.path / name).exists():
                        archive.write(self.run.path / name, name)
            digest = _sha256(packed)[:16]
            with files.replacing(folder / f"{progress}-{digest}.zip") as partial:
                packed.seek(0)
                with partial.open("wb") as there:
                    shutil.copyfileobj(packed, there)
                # This reads what the drive says it has, and so finds a full or broken one.
                with partial.open("rb") as there:
                    if _sha256(there)[:16] != digest:
                        raise RunError("what is read there is not what was written.")
        for old in sorted(folder.glob("*.zip"))[:-_KEPT]:
            os.truncate(old, 0)  # a Drive keeps what is deleted in its trash, and counts it
            files.remove(old)

    def restore(self) -> None:
        """Bring the run folder, which the caller holds, to the newest whole copy ahead of it.

        Raises:
            RunError: there are copies, none of them whole, and no checkpoint here either.
        """
        if self.folder is None:
            return
        here, damaged, taken = run_folder.progress(self.run.path), [], False
        for partial in self.folder.glob(".*.partial.zip"):  # of killed copies
            files.remove(partial)
        for copy in sorted(self.folder.glob("*.zip"), reverse=True):
            progress, _, digest = copy.stem.rpartition("-")
            if taken or progress <= here:
                continue
            with tempfile.TemporaryFile(dir=self.run.path) as packed:
                try:
                    with copy.open("rb") as there:
                        shutil.copyfileobj(there, packed)
                except OSError as error:
                    raise RunError(
                        f"{copy} could not be read ({error.strerror}): mount its drive anew, or "
                        "unset SOBOOK_MIRROR."
                    ) from None
                if taken := _sha256(packed)[:16] == digest:
                    self._unpack(packed)
                    print(f"{self.run.path}: restored from {copy}")
                else:
                    damaged.append(copy.name)
        names = ", ".join(damaged)
        if damaged and not taken and here == run_folder.NOTHING:
            raise RunError(
                f"{self.folder}: {names} is damaged (half copied?), and no copy there is whole: "
                "delete that folder to train anew."
            )
        if damaged:
            warnings.warn(
                f"{self.folder}: {names} is damaged (half copied?): a checkpoint before it is used",
                stacklevel=2,
            )

    def _unpack(self, packed: IO[bytes]) -> None:
        """Resumed from, and finished, is only what is there as a whole: those files come last."""
        with zipfile.ZipFile(packed) as archive:
            for name in run_folder.FILES:
                if name in archive.namelist():
                    with (
                        files.replacing(self.run.path / name) as partial,
                        partial.open("wb") as file,
                    ):
                        shutil.copyfileobj(archive.open(name), file)
        if self.run.finished:
            files.remove(self.run.path / "resume.safetensors")


def _sha256(file: IO[bytes]) -> str:
    file.seek(0)
    return hashlib.sha256(file.read()).hexdigest()
