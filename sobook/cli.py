"""The command `sobook`: one function per subcommand; its docstring and signature are its help.

Names of `sobook` are imported when first used, so ``--help`` never loads torch.
"""

import argparse
import contextlib
import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated

import tyro

import sobook
from sobook import files
from sobook.errors import SobookError, first_line, without_secrets
from sobook.training.config import TrainConfig


@dataclass(frozen=True)
class Source:
    """Which encoder, on which images: a finished run, or an encoder and a data set by name."""

    # Run folder. Without one, the encoder named below is used as it comes (frozen).
    run: Annotated[str | None, tyro.conf.Positional] = None
    # aviary, cub200, cars196, sop, inshop or folder; default: that of the run, else aviary.
    dataset: str | None = None
    root: str | None = None  # Folder that holds the data sets; default: $SOBOOK_DATA, else data/.
    # Options of the data set, e.g. species 40 seed 1.
    options: dict[str, int] = field(default_factory=dict)
    allow_partial: bool = False  # Accept a benchmark with images missing.
    encoder: str = TrainConfig.encoder  # Name of a timm model, or the bundled micro encoder.
    weights: str | None = "pretrained"  # pretrained, micro, or a file or folder of weights.
    image_size: int | None = None  # Side of the input in pixels; default: the encoder's own.
    token: str | None = None  # Which token is the feature: cls, dist or mean.
    device: str | None = None  # cpu, cuda …; default: that of the run, else a GPU if there is one.

    def open(self) -> "tuple[TrainConfig, sobook.Encoder]":
        """The settings of the data, and the encoder on its device."""
        choose_device, device = sobook.training.processes.choose_device, None
        if self.run is None:
            config = TrainConfig(dataset=self.dataset or "aviary", encoder=self.encoder, dim=None)
            encoder = sobook.Encoder.create(
                self.encoder, weights=self.weights, image_size=self.image_size, token=self.token
            ).eval()
        else:
            run = sobook.Run.load(self.run)
            config, encoder = run.config, run.encoder()
            with contextlib.suppress(SobookError):  # where it was trained, if that is here
                device = choose_device(run.state["device"].partition(":")[0])
            if self.dataset not in (None, config.dataset):  # the run's options are of its own data
                config = config.replace(dataset=self.dataset, options={}, allow_partial=False)
        config = config.replace(
            root=self.root or config.root,
            options=self.options or config.options,
            allow_partial=self.allow_partial or config.allow_partial,
        )
        if self.device or device is None:
            device = choose_device(self.device)
        return config, encoder.to(device)


SourceOptions = Annotated[Source, tyro.conf.arg(name="")]  # its fields, without a prefix
Several = tyro.conf.Positional[tuple[str, ...]]


def prepare(
    name: tyro.conf.Positional[str],
    /,
    root: str | None = None,
    options: dict[str, int] = {},  # noqa: B006 (tyro reads the default, nobody changes it)
) -> None:
    """Bring a data set onto this machine: download, verify, unpack; or draw, for the aviary.

    For instance:
      sobook prepare aviary --options species 40 seed 1
      sobook prepare cub200 --root ~/datasets

    Args:
        name: aviary, cub200, cars196, sop, inshop or folder.
        root: folder that holds the data sets; default: $SOBOOK_DATA, else data/.
        options: options of the data set.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what is left out: listed in full below
        folder = sobook.prepare(name, root, **options)
        notes = sobook.data.notes(name, root)
    _print_notes(notes)
    _say(folder)


def train(
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = TrainConfig(),  # noqa: B008 (frozen)
    recipe: str | None = None,
    dry_run: bool = False,
) -> None:
    """Train an encoder, evaluate it on the test classes, and leave a run folder.

    A finished run with the same settings is opened, not repeated; an unfinished one resumes from
    its last checkpoint. On several devices: torchrun --nproc_per_node 2 -m sobook train ...

    For instance:
      sobook train --so-weight 100 --seed 1 --dry-run
      sobook train --recipe cub200 --root ~/data --so-weight 100
      sobook train --recipe photos --root my_pictures --so-weight 100

    Args:
        config: the settings; what is not named here is that of the recipe, or the default.
        recipe: settings of data/recipes.toml to start from: cub200, cars196, sop, inshop
            (DeiT-Small), one of these with -tiny, or photos, for a folder of your own.
        dry_run: say what the run is, time three steps of it, and stop.
    """
    if dry_run:
        print(sobook.training.dry_run(config))
        return
    run = sobook.fit(config)
    if sobook.training.processes.launched()[0] == 0:  # of several processes, one reports
        _print_result(run.path.name, run.retrieval)
        _say(f"  trained and evaluated on {run.state['device']}")
        _say(run.path)


def evaluate(source: SourceOptions) -> None:
    """Recall@K, MAP@R and R-precision on the test classes.

    For instance:
      sobook evaluate data/runs/my-run
      sobook evaluate --encoder deit_tiny_patch16_224 --dataset cub200 --root ~/datasets
    """
    config, encoder = source.open()
    result = sobook.training.evaluate_run(config, encoder, progress=True)
    notes = sobook.data.notes(config.dataset, **config.load_options)
    _print_result(source.run or f"{encoder.name}, frozen", {**result.summary(), "notes": notes})
    _say(f"  computed on {encoder.mean.device}")


def compare(runs: Several, /) -> None:
    """Set runs on the same data side by side; differences are to the first.

    Intervals are 95 % bootstrap intervals over classes; those of differences are paired.

    For instance:
      sobook compare data/runs/pa data/runs/so100

    Args:
        runs: two or more run folders.
    """
    if len(runs) < 2:
        raise SobookError("compare needs at least two run folders.")
    opened = [sobook.Run.load(path) for path in runs]
    data = {(run.config.dataset, str(run.config.options)) for run in opened}
    if len(data) > 1:
        raise SobookError(f"the runs are on different data: {sorted(data)}.")
    for run in opened:
        run.retrieval  # noqa: B018 (one that is not finished fails here, before any is embedded)
    results = [
        sobook.training.evaluate_run(run.config, run.encoder(), progress=True) for run in opened
    ]
    import pandas as pd

    rows = []
    for run, result in zip(opened, results, strict=True):
        low, high = result.interval(1)
        paired = sobook.statistics.compare_classes(results[0], result)
        difference = f"{paired.difference:+.3f} [{paired.low:+.3f}, {paired.high:+.3f}]"
        shape = sobook.describe(run.proxies())
        row = {"run": run.path.name, "so_weight": f"{run.config.so_weight:g}"}
        row |= {"R@1": f"{result.recall[1]:.3f}", "95 % interval": f"{low:.3f} – {high:.3f}"}
        row |= {"difference": "–" if result is results[0] else difference}
        row |= {"RMS cos": f"{shape.rms_cosine:.3f}", "coherence": f"{shape.coherence:.3f}"}
        rows.append(row)
    _say(pd.DataFrame(rows).to_string(index=False))
    _print_notes(dict.fromkeys(note for run in opened for note in run.retrieval["notes"]))


def embed_images(source: SourceOptions, out: Path, split: str = "test") -> None:
    """Write the embeddings of a split to an .npz file: embeddings, labels, paths, class_names.

    For instance:
      sobook embed data/runs/my-run --out test.npz
      sobook embed --dataset folder --root ~/pictures --split train --out pictures.npz

    Args:
        source: which encoder, on which images.
        out: the file to write, ending in .npz.
        split: train, validation, test, query or gallery.
    """
    out = _checked_output("--out", out, ".npz")
    import numpy as np

    config, encoder = source.open()
    images = sobook.load(config.dataset, split, **config.load_options)
    embeddings = sobook.embed(encoder, images)
    with files.replacing(out) as partial:
        np.savez(
            partial,
            embeddings=embeddings,
            labels=images.labels,
            paths=[str(path) for path in images.paths],
            class_names=images.class_names,
            notes=np.array(images.notes, dtype=str),
        )
    _say(f"{out}: {len(embeddings):,} embeddings of dimension {embeddings.shape[1]}")
    _print_notes(images.notes)


def export_run(
    run: tyro.conf.Positional[str], /, onnx: Path | None = None, hub: Path | None = None
) -> None:
    """Take a trained encoder elsewhere: an ONNX file, or a folder for the Hugging Face Hub.

    For instance:
      sobook export data/runs/my-run --onnx encoder.onnx
      sobook export data/runs/my-run --hub my-model

    Args:
        run: a finished run folder.
        onnx: the ONNX file to write; it is compared with torch through onnxruntime.
        hub: the folder to write, with timm's weights and a model card; nothing is uploaded.
    """
    if onnx is None and hub is None:
        raise SobookError("export: name --onnx, --hub or both.")
    if onnx is not None:
        onnx = _checked_output("--onnx", onnx, ".onnx")
    opened = sobook.Run.load(run)
    if onnx is not None:
        _say(sobook.export.to_onnx(opened, onnx))
    if hub is not None:
        _say(sobook.export.to_hub(opened, hub))


def explore(
    runs: Several, /, out: Path = Path("explorer.html"), classes: int = 100, images: int = 20
) -> None:
    """Write a page that links heatmap, map, angles and pictures of one run or two.

    The page needs no network and no Python: open it in any browser.

    For instance:
      sobook explore data/runs/pa data/runs/so100 --out explorer.html

    Args:
        runs: one or two run folders, on the same data.
        out: the file to write, ending in .html.
        classes: most classes shown.
        images: most images of each class.
    """
    out = _checked_output("--out", out, ".html", ".htm")
    opened = [sobook.Run.load(path) for path in runs]
    from sobook.course.pages import explorer

    page = explorer.from_runs(opened, classes=classes, per_class=images)
    page.save(out)
    _say(f"{out}: {len(page.source.encode()) / 1e6:.1f} MB")


def make_lab(
    source: SourceOptions, out: Path = Path("lab.html"), features: Path | None = None
) -> None:
    """Write the lab: a page that trains a head on frozen features in the browser, live.

    The page needs no network and no Python: open it in any browser.

    For instance:
      sobook lab --out lab.html
      sobook lab --dataset folder --root my_pictures --out lab.html
      sobook lab --features mine.npz --out lab.html

    Args:
        source: which encoder, frozen, on which images.
        out: the file to write, ending in .html.
        features: .npz with features of your own, instead of images: features (N, F), labels (N,)
            and split (N,), "train" or "test".
    """
    out = _checked_output("--out", out, ".html", ".htm")
    from sobook.course.pages import lab
    from sobook.training.heads import HeadConfig

    if source.run is not None:
        raise SobookError("the lab trains a head on a frozen encoder: name no run, but --encoder.")
    if features is not None:
        page = lab.from_features(features)
    else:
        names = ("root", "options", "allow_partial", "encoder", "weights", "image_size", "token")
        settings = {name: getattr(source, name) for name in (*names, "device")}
        dataset = source.dataset or HeadConfig.dataset
        page = lab.page(HeadConfig(dataset=dataset, dim=64, **settings))
    page.save(out)
    _say(f"{out}: {len(page.source.encode()) / 1e6:.1f} MB")


def run_studies(
    studies: Several,
    /,
    out: Path | None = None,
    jobs: int | None = None,
    only_gather: bool = False,
    dry_run: bool = False,
) -> None:
    """Do the runs of a study, a grid in a TOML file, and gather them into a table and a figure.

    Finished runs are not repeated: stop it when you like, and start it again. Results are
    NAME.csv (a row per run), NAME.md (means, intervals, where it came from), NAME.json, NAME.png.

    For instance:
      sobook study aviary_lambda_heads --out results
      sobook study my_study.toml --jobs 2
      sobook study my_study.toml --dry-run

    Args:
        studies: study files, or names of studies that come with sobook.
        out: folder for the results; default: <data root>/study_results.
        jobs: runs at a time; default: a run for each GPU, or for each core where only heads learn.
        only_gather: start nothing, gather what is finished.
        dry_run: check what all runs need, say how many are to come, and stop.
    """
    if not studies:
        raise SobookError("study needs a study file, or the name of one that comes with sobook.")
    from sobook.course.studies import report, study

    if jobs is not None and jobs < 1:
        raise SobookError(f"--jobs {jobs}: at least one run at a time.")
    out = files.data_root() / "study_results" if out is None else out.expanduser()
    loaded = [study.load(name) for name in studies]  # a mistake in the last is said at once
    for one in loaded:
        if dry_run:
            runs, to_come = len(one.plan()), len(study.check(one))
            _say(f"{one.name}: {runs} runs, {to_come} of them to come; all they need is there")
            continue
        table = study.gather(one) if only_gather else study.run(one, jobs=jobs)
        if table.empty:
            raise SobookError(f"study {one.name}: no run is finished yet, so there is no table.")
        where = out.name if out.is_absolute() else out.as_posix()
        for written in report.write(one, table, out, f"sobook study {one.name} --out {where}"):
            _say(written)
        _say(f"{one.name}: {len(table)} of {len(one.plan())} runs")


def search_pictures(
    source: SourceOptions,
    folder: Path | None = None,
    index: Path | None = None,
    query: tuple[str, ...] = (),
    k: int = 5,
    page: Path | None = None,
) -> None:
    """Search in a folder of pictures: the nearest of a query, or a page to search in a browser.

    For instance:
      sobook search data/runs/my-run --folder ~/pictures --index pictures.npz --page search.html
      sobook search data/runs/my-run --index pictures.npz --query bird.jpg other.jpg

    Args:
        source: the encoder; its data set is not used.
        folder: pictures to index, subfolders included.
        index: .npz to write the index to or, without --folder, to read it from.
        query: pictures to search with. One line says whether there is anything like it, its class,
            and the chance that this is right; then one line per neighbor: cosine, class, file.
        k: neighbors for each query.
        page: HTML file to write, with the indexed pictures in it; it needs no network.
    """
    if folder is None and index is None:
        raise SobookError("search needs --folder, the pictures to index, or --index, a saved one.")
    if k < 1:
        raise SobookError(f"--k {k}: at least one neighbor.")
    for picture in query:
        if not Path(picture).is_file():
            raise SobookError(f"--query {picture}: there is no such file.")
    if page is not None:
        page = _checked_output("--page", page, ".html", ".htm")
    if folder is not None and index is not None:
        index = _checked_output("--index", index, ".npz")
    _, encoder = source.open()
    from sobook import search
    from sobook.data.pictures import printable

    if folder is None:
        pictures = search.Index.load(index)
    else:
        most = None if page is None else search.MOST_ON_PAGE
        pictures = search.index_folder(encoder, folder, most=most)
        _print_notes(pictures.left_out)
        if index is not None:
            _say(f"{pictures.save(index)}: {len(pictures):,} pictures")
        if pictures.calibration is not None:
            _say(f"its own pictures, asked as if new: {pictures.calibration}")
    for picture in query:
        similarities, places = pictures.search(encoder, picture, k)
        said = ""
        if pictures.calibration is not None:
            judged = pictures.judge(search.embed_picture(encoder, picture)[None])
            said = f": {search.sentence(judged.iloc[0])}"
        _say(f"{printable(picture)}{said}")
        for similarity, i in zip(similarities, places, strict=True):
            name, path = map(printable, (pictures.names[i] or "–", pictures.paths[i]))
            _say(f"  {similarity:+.3f}  {name}  {path}")
    if page is not None:
        _say(search.page(pictures, page))


def grade_notebooks(
    notebooks: tyro.conf.Positional[tuple[Path, ...]],
    /,
    out: Path,
    gradebook: Path | None = None,
    class_list: Path | None = None,
    timeout: float = 900.0,
    jobs: int = 1,
    execute: bool = True,
) -> None:
    """Run students' notebooks and write a CSV: a line per notebook and exercise.

    Each runs in a kernel of its own. That is not a sandbox: students' code runs with your rights,
    so grade on a machine or in a container where that does no harm.

    For instance:
      sobook grade handed-in/*.ipynb --out grades.csv --timeout 300
      sobook grade handed-in/*/*.ipynb --out grades.csv --gradebook class.csv --jobs 2

    Args:
        notebooks: the files handed in; 03_….ipynb, or any name, since the exercises tell.
        out: the CSV to write, anew after each notebook.
        gradebook: another CSV, with a row per student (folder or file) and a column per exercise.
        class_list: a CSV with the columns folder, id, name: every student gets a row, and a
            worksheet counts only with the student's own id.
        timeout: seconds for each notebook.
        jobs: so many notebooks at the same time.
        execute: run them anew; --no-execute only reads the verdicts saved in the file.
    """
    if not notebooks:
        raise SobookError("grade needs one notebook or more.")
    if jobs < 1:
        raise SobookError(f"--jobs {jobs}: it must be 1 or more.")
    from concurrent.futures import ThreadPoolExecutor

    from sobook.course import grade as grading

    students = None if class_list is None else grading.read_class_list(class_list)

    def grade(path: Path, name: str) -> list[grading.Grade]:
        student = name.rpartition("/")[0]  # none where all files lie in one folder
        if students and (listed := students.get(grading.student_of(name))):
            student = listed.id
        return grading.grade(path, name=name, student=student, timeout=timeout, execute=execute)

    grades: list[grading.Grade] = []
    with ThreadPoolExecutor(jobs) as pool:  # the work is done in kernels, in processes of their own
        graded = pool.map(grade, notebooks, grading.names(notebooks, students or ()))
        for path, found in zip(notebooks, graded, strict=True):
            _say(f"{path}: {sum(grade.passed for grade in found)} of {len(found)} passed")
            grades += found
            grading.write(grades, out)  # each time, so that a stop loses nothing
    _say(out)
    if gradebook is not None:
        _say(grading.write_gradebook(grades, gradebook, students))


def rehearse(
    name: tyro.conf.Positional[str], /, root: Path | None = None, fraction: float = 1.0
) -> None:
    """Try out a benchmark at full size, without its pictures: every command, and what it takes.

    Draws a stand-in with the official layout and counts, then runs prepare, train, evaluate,
    compare, explore and export on it with a small encoder, and writes a table of seconds, memory
    and disk. All of it says that the data are stand-ins. Stopped, it resumes.

    For instance:
      sobook rehearse cub200 --fraction 0.01
      sobook rehearse sop --root /big/disk

    Args:
        name: cub200, cars196, sop or inshop.
        root: folder for all that comes of it, to be deleted afterwards; default: rehearsal in
            $SOBOOK_DATA, else in data/.
        fraction: of the official counts.
    """
    from sobook import rehearsal

    root = files.data_root() / "rehearsal" if root is None else root
    written = rehearsal.rehearse(name, root, fraction=fraction, say=_say)
    _say(written.read_text(encoding="utf-8"))
    _say(written)


def cache(root: str | None = None, clean: bool = False) -> None:
    """Say how much room the caches take, decoded images and embeddings, or delete them.

    All of it can be made again; it only takes time.

    For instance:
      sobook cache --clean

    Args:
        root: folder that holds the data sets; default: $SOBOOK_DATA, else data/.
        clean: delete what no process is writing.
    """
    from sobook.data import pixels

    entries = pixels.cache_entries(root)
    for name, size in entries.items():
        _say(f"{size / 1e6:10,.1f} MB  {name}")
    _say(f"{sum(entries.values()) / 1e6:10,.1f} MB  in all")
    if clean:
        _say(f"{pixels.clear_cache(root) / 1e6:10,.1f} MB  deleted")


def _say(line: object) -> None:
    """Print a line at once; the work goes on also where nobody reads it."""
    print(line)
    _flush()


def _checked_output(option: str, file: Path, *suffixes: str) -> Path:
    """The file to write, refused before the work that it is for."""
    file = file.expanduser()
    if file.suffix not in suffixes:
        raise SobookError(f"{option} {file}: the file must end in {suffixes[0]}.")
    if file.is_dir():
        raise SobookError(f"{option} {file}: that is a folder; name a file.")
    return file


def _print_result(title: str, result: dict) -> None:
    low, high = result[next(key for key in result if key.endswith("_interval"))]
    recalls = "  ".join(f"R@{k} {value:.3f}" for k, value in result["recall"].items())
    _say(f"{title}: {recalls}")
    _say(
        f"  95 % interval of the first over classes {low:.3f} – {high:.3f}; MAP@R "
        f"{result['map_at_r']:.3f}, R-precision {result['r_precision']:.3f}; "
        f"{result['queries']:,} queries"
    )
    _print_notes(result.get("notes", ()))


def _print_notes(notes) -> None:
    for note in notes:
        _say(f"  note: {note}")


COMMANDS = {
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "study": run_studies,
    "explore": explore,
    "lab": make_lab,
    "embed": embed_images,
    "search": search_pictures,
    "export": export_run,
    "grade": grade_notebooks,
    "rehearse": rehearse,
    "cache": cache,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; default: that of this process.

    Returns:
        The exit status: 0 well, 1 an error. (Wrong usage exits with 2.)
    """
    _prepare_process()
    warnings.formatwarning = _once()
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    options = _parser().parse_args([word for word in arguments if word != "--debug"])
    try:
        _run(options.command, options.arguments)
    except KeyboardInterrupt:
        return _fail("stopped; the same command resumes from what is saved.")
    except BrokenPipeError:  # of help that nobody reads to its end
        pass
    except (SobookError, OSError, ImportError) as error:
        if debug:
            raise
        return _fail(str(error))
    except Exception as error:  # a bug, unless it comes of packages that are too old
        if debug or not (wrong := _unfit_packages()):
            raise
        return _fail(f"{first_line(error)}, and {wrong}")
    finally:
        _flush()
    return 0


def _unfit_packages() -> str:
    """What is installed in a version that sobook does not work with, and how to mend it."""
    from packaging.requirements import Requirement

    told, mend = [], []
    for line in metadata.requires("sobook") or ():
        needed = Requirement(line)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(needed.name)
            if needed.specifier.contains(version, prereleases=True):
                continue
            told.append(f"{needed.name} {version} is installed, and sobook needs ")
            told[-1] += f"{needed.name}{needed.specifier}"
        except metadata.PackageNotFoundError:
            told.append(f"{needed.name} is not installed")
        mend.append(f"'{needed.name}{needed.specifier}'")
    return f"{'; '.join(told)}: pip install {' '.join(mend)}." if told else ""


def _prepare_process() -> None:
    """Let output degrade rather than fail, and end on a signal as on Ctrl-C, with a sentence."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            # The first file opened would take its number, and receive what C code prints there.
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # "…" on a terminal that knows ASCII alone: "\u2026"
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP
                signal.signal(number, _stop)


def _stop(*_) -> None:
    raise KeyboardInterrupt


def _flush() -> None:
    """Write out what was printed; where nobody reads any more, as after `| head -1`, drop it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _once() -> Callable[..., str]:
    """How a warning is written: one line, and nothing where it has been said."""
    said = set()

    def line(message, *_, **__) -> str:
        text = f"sobook: {without_secrets(str(message))}\n"
        new = text not in said
        said.add(text)
        return text if new else ""

    return line


def _parser() -> argparse.ArgumentParser:
    """Of the command's name; the command itself parses what comes after."""
    lines = [f"  {name:10}{run.__doc__.splitlines()[0]}" for name, run in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="sobook",
        epilog="\n".join(["commands:", *lines, "", "sobook COMMAND --help shows examples."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="see below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the command")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"sobook {sobook.__version__}")
    return parser


def _run(name: str, arguments: list[str]) -> None:
    command = COMMANDS[name]
    if name == "train":  # a recipe replaces the defaults, so it has to be known first
        early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        early.add_argument("--recipe")
        if recipe := early.parse_known_args(arguments)[0].recipe:
            command = functools.partial(train, config=TrainConfig.recipe(recipe))
    options = (tyro.conf.FlagCreatePairsOff,)
    words = _spell_none(arguments)
    tyro.cli(command, prog=f"sobook {name}", args=words, config=options)


def _spell_none(arguments: list[str]) -> list[str]:
    """``--dim none`` and ``--dim=none`` as tyro wants them: None with a capital.

    >>> _spell_none(["none", "--dim", "none", "--weights=NONE"])
    ['none', '--dim', 'None', '--weights=None']
    """
    words = list(arguments)
    for i, (option, word) in enumerate(zip(["", *arguments], arguments, strict=False)):
        name, equals, value = word.partition("=")
        if word.startswith("--") and equals and value.lower() == "none":
            words[i] = f"{name}=None"
        elif option.startswith("--") and word.lower() == "none":
            words[i] = "None"
    return words


def _fail(message: str) -> int:
    number, _ = files.launched()
    with contextlib.suppress(OSError):  # nobody reads what is said
        process = f" (process {number})" if number else ""
        print(f"sobook{process}: {without_secrets(message)}", file=sys.stderr)
    return 1
