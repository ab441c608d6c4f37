"""The command `sobook`: one class per subcommand; its docstring and fields are its help.

Names of `sobook` are imported when first used, so ``--help`` never loads torch. Start with `main`.
"""

import argparse
import functools
import math
import sys
import types
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

import sobook
from sobook import files
from sobook.errors import SobookError, check_choice
from sobook.training.config import TrainConfig

Several = tyro.conf.Positional[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which encoder, on which images: a finished run, or an encoder and a data set by name."""

    # Folder of a finished run. Without one, the encoder named below is used as it comes (frozen).
    run: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[RUN]")] = None
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
    device: str | None = None  # cpu, cuda …; default: a GPU if there is one.

    def open(self) -> "tuple[TrainConfig, sobook.Encoder, sobook.Run | None]":
        """Settings of the data, the encoder on its device, and the run it is of."""
        names = ("dataset", "root", "options", "allow_partial")
        given = {name: value for name in names if (value := getattr(self, name))}
        if self.run is None:
            run, config = None, TrainConfig(**given, encoder=self.encoder, dim=None)
            encoder = sobook.Encoder.create(
                self.encoder, weights=self.weights, image_size=self.image_size, token=self.token
            ).eval()
        else:
            run = sobook.Run.load(self.run)
            if self.dataset not in (None, run.config.dataset):  # the run's options do not fit
                given |= {"options": self.options, "allow_partial": self.allow_partial}
            config, encoder = run.config.replace(**given), run.encoder()
        return config, encoder.to(sobook.training.processes.choose_device(self.device)), run


@dataclass(frozen=True)
class Prepare:
    """Bring a data set onto this machine: download, verify, unpack; or draw, for the aviary.

    For instance: sobook prepare aviary --options species 40 seed 1
                  sobook prepare cub200 --root ~/datasets
    """

    name: tyro.conf.Positional[str]  # aviary, cub200, cars196, sop, inshop or folder.
    root: str | None = None  # Folder that holds the data sets; default: $SOBOOK_DATA, else data/.
    options: dict[str, int] = field(default_factory=dict)  # Options of the data set.

    def __call__(self) -> None:
        print(sobook.prepare(self.name, self.root, **self.options))


@dataclass(frozen=True)
class Train:
    """Train an encoder, evaluate it on the test classes, and leave a run folder.

    A finished run with the same settings is opened, not repeated; an unfinished one resumes from
    its last checkpoint. On several devices: torchrun --nproc_per_node 2 -m sobook train ...

    For instance: sobook train --so-weight 100 --seed 1 --dry-run
                  sobook train --recipe photos --root my_pictures --so-weight 100
    """

    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = TrainConfig()
    # Settings of data/recipes.toml to start from: cub200, cars196, sop, inshop (DeiT-Small), one of
    # these with -tiny, or photos, for a folder of your own.
    recipe: str | None = None
    dry_run: bool = False  # Say what the run would do, time three steps of it, and stop.

    def __call__(self) -> None:
        if self.dry_run:
            print(sobook.training.dry_run(self.config))
            return
        run = sobook.fit(self.config)
        if sobook.training.processes.launched()[0] == 0:  # under torchrun, one process reports
            _report(run.path.name, run.retrieval, run.retrieval["notes"], run.state["device"])
            print(run.path)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Source):
    """Recall@K, MAP@R and R-precision on the test classes.

    For instance: sobook evaluate data/runs/my-run
                  sobook evaluate --encoder deit_tiny_patch16_224 --dataset cub200 --root ~/datasets
    """

    def __call__(self) -> None:
        config, encoder, run = self.open()
        sets = _image_sets(config, run)
        notes = [note for part in sets.values() for note in part.notes]
        if run is not None:
            notes.append(f"epoch {run.state['selected_epoch']} of {run.config.epochs} was kept")
            parts = sobook.data.image_sets.test_splits(config.dataset)
            tested = {name for part in parts for name in sets[part].class_names}
            if trained := sorted(tested & {*run.state["class_names"]}):
                listed = sobook.data.pictures.listed(trained)
                notes.append(f"{len(trained)} test classes are named as ones trained on: {listed}")
        result = sobook.training.evaluate_run(config, encoder, sets=sets, progress=True)
        title = self.run or f"{encoder.name}, frozen"
        _report(title, result.summary(), notes, encoder.mean.device)


@dataclass(frozen=True)
class Compare:
    """Set runs on the same data side by side; differences are to the first.

    Intervals are 95 % intervals over classes; those of differences are paired.

    For instance: sobook compare data/runs/pa data/runs/so100
    """

    runs: Several  # Two or more run folders.

    def __call__(self) -> None:
        import pandas as pd

        runs = [sobook.Run.load(path) for path in self.runs]
        if len(runs) < 2:
            raise SobookError("compare needs two or more runs.")
        for run in runs[1:]:
            run.check_same_data(runs[0])
        rows, results = [], []
        for run in runs:
            result = sobook.training.evaluate_run(
                run.config, run.encoder(), sets=run.sets, progress=True
            )
            results.append(result)
            paired = sobook.statistics.compare_classes(results[0], result)
            difference = f"{paired.difference:+.3f} ({_interval(paired.low, paired.high)})"
            shape = sobook.describe(run.proxies())
            row = {"run": run.path.name, "so_weight": f"{run.config.so_weight:g}"}
            row |= {"epoch": f"{run.state['selected_epoch']} of {run.config.epochs}"}
            row |= {"R@1": result.recall[1], "95 % interval": _interval(*result.interval(1))}
            row |= {"difference": difference if len(results) > 1 else "–"}
            rows.append(row | {"RMS cos": shape.rms_cosine, "coherence": shape.coherence})
        print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format))
        _print_notes(note for run in runs for note in run.retrieval["notes"])


@dataclass(frozen=True)
class Study:
    """Do the runs of a study, a grid in a TOML file, and gather them into a table and a figure.

    Finished runs are not repeated: stop it when you like, and start it again. Results are
    NAME.csv (a row per run), NAME.md (means, intervals, where it came from), NAME.json, NAME.png.

    For instance: sobook study aviary_lambda_heads --out results
                  sobook study my_study.toml --jobs 2
    """

    studies: Several  # Study files, or names of studies that come with sobook.
    out: Path | None = None  # Folder for the results; default: <data root>/study_results.
    jobs: int | None = None  # Runs at a time; default: one per GPU, or per core for heads.
    only_gather: bool = False  # Start nothing, gather what is finished.
    dry_run: bool = False  # Check what all runs need, say how many are to come, and stop.

    def __call__(self) -> None:
        from sobook.course.studies import report, study

        if not self.studies or (self.jobs is not None and self.jobs < 1):
            raise SobookError("study needs a study's file or name, and --jobs 1 or more.")
        out = self.out.expanduser() if self.out else files.data_root() / "study_results"
        for grid in [study.load(name) for name in self.studies]:  # all load before one runs
            count = len(grid.plan())
            if self.dry_run:
                print(f"{grid.name}: {count} runs, {len(study.check(grid))} of them to come")
                continue
            table = study.gather(grid) if self.only_gather else study.run(grid, jobs=self.jobs)
            if table.empty:
                raise SobookError(f"study {grid.name}: no run is finished yet: no table.")
            folder = out.name if out.is_absolute() else out.as_posix()
            written = report.write(grid, table, out, f"sobook study {grid.name} --out {folder}")
            print(*written, f"{grid.name}: {len(table)} of {count} runs", sep="\n", flush=True)


@dataclass(frozen=True)
class Explore:
    """Write a page that links heatmap, map, angles and pictures of one run or two.

    For instance: sobook explore data/runs/pa data/runs/so100 --out explorer.html
    """

    runs: Several  # One or two run folders, on the same data.
    out: Path = Path("explorer.html")  # The page; it needs no network and no Python.

    def __call__(self) -> None:
        from sobook.course.pages import explorer

        page = explorer.from_runs([sobook.Run.load(path) for path in self.runs])
        print(page.save(self.out))


@dataclass(frozen=True, kw_only=True)
class Lab(Source):
    """Write the lab: a page that trains a head on frozen features in the browser, live.

    For instance: sobook lab --dataset folder --root my_pictures --out lab.html
                  sobook lab --features mine.npz
    """

    out: Path = Path("lab.html")  # The page; it needs no network and no Python.
    # Features of your own, instead of images: an .npz with features (N, F), labels (N,) and split
    # (N,), "train" or "test".
    features: Path | None = None

    def __call__(self) -> None:
        from sobook.course.pages import lab
        from sobook.training.heads import HeadConfig

        if self.run is not None:
            raise SobookError("the lab trains a head on a frozen encoder: name no run.")
        settings = {item.name: getattr(self, item.name) for item in fields(Source)[1:]}
        settings |= {"dataset": self.dataset or HeadConfig.dataset, "dim": 64}
        own = self.features is not None
        page = lab.from_features(self.features) if own else lab.page(HeadConfig(**settings))
        print(page.save(self.out))


@dataclass(frozen=True, kw_only=True)
class Embed(Source):
    """Write the embeddings of a split to an .npz file: embeddings, labels, paths, class_names.

    For instance: sobook embed data/runs/my-run --out test.npz
                  sobook embed --dataset folder --root ~/pictures --split train --out pictures.npz
    """

    out: Path  # The file to write.
    split: str = "test"  # train, validation, test, query or gallery.

    def __call__(self) -> None:
        from sobook.search import Index

        config, encoder, run = self.open()
        sets = _image_sets(config, run)
        check_choice("split", self.split, ("validation", *sets))
        if self.split == "validation":  # those of the run: other classes of it were trained on
            held = (config.validation_fraction, config.seed)
            sets["validation"] = sobook.data.hold_out(sets["train"], *held, at_least=2)[1]
        images = sets[self.split]
        embeddings = sobook.embed(encoder, images)
        paths = tuple(path.absolute() for path in images.paths)
        names = tuple(images.class_names[label] for label in images.labels)
        index = Index(embeddings, paths, names, images.notes, encoder=encoder.fingerprint())
        print(f"{index.save(self.out)}: {len(index):,} embeddings of dimension {encoder.dim}")


@dataclass(frozen=True, kw_only=True)
class Search(Source):
    """Search in a folder of pictures: the nearest of a query, or a page to search in a browser.

    The encoder is used, the options of a data set are not.

    For instance: sobook search data/runs/my-run --folder ~/pictures --index i.npz --page p.html
                  sobook search data/runs/my-run --index i.npz --query bird.jpg other.jpg
    """

    folder: Path | None = None  # Pictures to index, subfolders included.
    index: Path | None = None  # .npz to write the index to or, without --folder, to read it from.
    # Pictures to search with. One line says whether there is anything like it, its class, and the
    # chance that this is right; then one line per neighbor: cosine, class, file.
    query: tuple[str, ...] = ()
    k: int = 5  # Neighbors for each query.
    page: Path | None = None  # Page to write, with the indexed pictures in it; needs no network.

    def __call__(self) -> None:
        from sobook import search
        from sobook.course.pages import search_page

        if self.folder is None and self.index is None:
            raise SobookError("search needs --folder, pictures to index, or --index, a saved one.")
        encoder = self.open()[1]
        if self.folder is None:
            index = search.Index.load(self.index, encoder)
        else:
            index = search.index_folder(encoder, self.folder)
            if index.calibration is not None:
                print(index.calibration)
            if self.index is not None:
                print(f"{index.save(self.index)}: {len(index):,} pictures")
            _print_notes(index.left_out)
        for picture in self.query:
            embedding = search.embed_images(encoder, [sobook.data.read_image(picture)])
            calibrated = index.calibration is not None
            verdict = search.sentence(index.judge(embedding).iloc[0]) if calibrated else ""
            print(f"{picture}: {verdict}")
            (cosines,), (nearest,) = index.search(embedding, self.k)
            for cosine, i in zip(cosines, nearest, strict=True):
                print(f"  {cosine:+.3f}  {index.names[i] or '–'}  {index.paths[i]}")
        if self.page is not None:
            print(search_page.page(index, self.page))


@dataclass(frozen=True)
class Export:
    """Take a trained encoder elsewhere: an ONNX file, or a folder for the Hugging Face Hub.

    For instance: sobook export data/runs/my-run --onnx encoder.onnx --hub my-model
    """

    run: tyro.conf.Positional[str]  # A finished run folder.
    onnx: Path | None = None  # File to write, checked in onnxruntime; needs 'sobook[export]'.
    hub: Path | None = None  # Folder to write: timm's weights and a model card, for an upload.

    def __call__(self) -> None:
        if self.onnx is None and self.hub is None:
            raise SobookError("export: name --onnx, --hub or both.")
        run = sobook.Run.load(self.run)
        if self.onnx is not None:
            print(sobook.export.to_onnx(run, self.onnx))
        if self.hub is not None:
            print(sobook.export.to_hub(run, self.hub))


@dataclass(frozen=True)
class Grade:
    """Run students' notebooks and write a CSV: a line per notebook and exercise.

    Each runs in a kernel of its own. That is not a sandbox: students' code runs with your rights,
    so grade on a machine or in a container where that does no harm.

    For instance: sobook grade handed-in/*.ipynb --out grades.csv --timeout 300
                  sobook grade handed-in/*/*.ipynb --out grades.csv --gradebook class.csv --jobs 2
    """

    # Submitted notebooks; a folder is a student, or a file, where all lie in one folder.
    notebooks: tyro.conf.Positional[tuple[Path, ...]]
    out: Path  # The CSV to write, anew after each notebook; what it holds already is kept.
    gradebook: Path | None = None  # A CSV with a row per student and a column per exercise.
    class_list: Path | None = None  # A CSV with the columns folder, id, name: all get a row.
    timeout: float = 900.0  # Seconds for each notebook.
    jobs: int = 1  # Notebooks at a time.
    execute: bool = True  # Run them anew; --no-execute only reads the verdicts saved in the file.

    def __call__(self) -> None:
        from sobook.course import grade

        if not self.notebooks or self.jobs < 1:
            raise SobookError("grade needs a notebook or more, and --jobs 1 or more.")
        failed = 0
        for grades in grade.grade_class(**vars(self)):
            passed = sum(one.passed == "yes" for one in grades)
            print(f"{grades[0].notebook}: {passed} of {len(grades)} passed", flush=True)
            failed += any(one.passed == "" for one in grades)
        print(*filter(None, (self.out, self.gradebook)), sep="\n")
        if failed:
            raise SobookError(
                f"{failed} notebooks could not be graded; the reasons are in {self.out}. The same "
                "command grades them, and leaves the others as they are."
            )


_CLASSES = (Prepare, Train, Evaluate, Compare, Study, Explore, Lab, Embed, Search, Export, Grade)
COMMANDS: dict[str, Any] = {command.__name__.lower(): command for command in _CLASSES}


def _image_sets(config: TrainConfig, run: "sobook.Run | None") -> dict[str, Any]:
    """All parts of the data that a command names: those of the run, or others."""
    if run is not None and config == run.config:
        return run.sets
    return sobook.data.load_splits(config.dataset, **config.load_options)


def _report(title: str, result: dict[str, Any], notes: Iterable[str], device: object) -> None:
    """Print the scalar results of a retrieval, see `Retrieval.summary`, and notes on the data."""
    ends = next(result[key] for key in result if key.endswith("_interval")) or (math.nan, math.nan)
    print(f"{title}:", "  ".join(f"R@{k} {value:.3f}" for k, value in result["recall"].items()))
    print(f"  95 % interval of the first over classes: {_interval(*ends)}", end="; ")
    print(f"MAP@R {result['map_at_r']:.3f},", f"R-precision {result['r_precision']:.3f}", end="; ")
    print(f"{result['queries']:,} queries")
    _print_notes(notes)
    print(f"  computed on {device}")


def _interval(low: float, high: float) -> str:
    return "none, of so few classes" if math.isnan(low) else f"{low:.3f} to {high:.3f}"


def _print_notes(notes: Iterable[str]) -> None:
    for note in dict.fromkeys(notes):  # each once
        print(f"  note: {note}")


_registry = ConstructorRegistry()


@_registry.primitive_rule
def _none(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """None is written "none", as in TOML files; tyro's own name for it is {None}."""
    is_none, text = (lambda value: value is None), ("none", "None")
    spec = PrimitiveConstructorSpec(1, "none", lambda _: None, is_none, lambda _: ["none"], text)
    return spec if info.type is types.NoneType else None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; default: that of this process.

    Returns:
        The exit status: 0 well, 1 an error. (Wrong usage exits with 2.)
    """
    warnings.formatwarning = lambda message, *_, **__: f"sobook: {message}\n"
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _parse([word for word in words if word != "--debug"])()
        return 0
    except KeyboardInterrupt:
        error = "stopped; the same command resumes from what is saved."
    except (SobookError, OSError, ImportError) as caught:
        if "--debug" in words:
            raise
        error = str(caught)
    print(f"sobook: {error}", file=sys.stderr)
    return 1


def _parse(words: list[str]) -> Any:
    """The command with its options, ready to be called."""
    listed = [f"  {name:9} {COMMANDS[name].__doc__.splitlines()[0]}" for name in COMMANDS]
    usage = "sobook COMMAND [options]\n\n" + "\n".join(listed)
    epilog = "sobook COMMAND --help lists options and examples; --debug shows tracebacks."
    parser = argparse.ArgumentParser("sobook", usage, epilog=epilog)
    parser.add_argument("--version", action="version", version=f"sobook {sobook.__version__}")
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    name = parser.parse_args(words[:1]).command
    command = COMMANDS[name]
    if name == "train":  # a recipe replaces the defaults, so it has to be known first
        early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        early.add_argument("--recipe")
        if recipe := early.parse_known_args(words)[0].recipe:
            command = functools.partial(Train, config=TrainConfig.recipe(recipe))
    only_on = (tyro.conf.FlagCreatePairsOff,)  # no --no-dry-run beside --dry-run
    with _registry:
        return tyro.cli(command, prog=f"sobook {name}", args=words[1:], config=only_on)
