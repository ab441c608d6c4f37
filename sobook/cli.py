"""The command `sobook`: one function a subcommand, in the words of the README."""

import os
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from sobook import geometry
from sobook.course import grading
from sobook.data import image_sets
from sobook.encoder import Encoder, embed
from sobook.errors import SobookError
from sobook.interactive import search
from sobook.retrieval import Retrieval, difference
from sobook.studies import study as studies
from sobook.training.config import TrainConfig
from sobook.training.loop import TrainingError, evaluate_run, fit
from sobook.training.run import Run


@dataclass(frozen=True)
class Source:
    """Which encoder, on which images: a finished run, or an encoder and a data set by name."""

    run: Annotated[str | None, tyro.conf.Positional] = None
    """Run folder. Without one, the encoder named below is used as it comes (frozen)."""
    dataset: str | None = None
    """aviary, cub200, cars196, sop, inshop or folder; default: that of the run, else aviary."""
    root: str | None = None
    """Folder that holds the data set's own folder; default: $SOBOOK_DATA, else data/."""
    options: dict[str, int] = field(default_factory=dict)
    """Options of the data set, e.g. species 40 seed 1."""
    allow_partial: bool = False
    """Accept a benchmark with images missing."""
    encoder: str = TrainConfig.encoder
    """Name of a timm model, or the bundled micro encoder."""
    weights: str | None = "pretrained"
    """pretrained, micro, or a .safetensors or .pth file."""
    image_size: int | None = None
    """Side of the input in pixels; default: the encoder's own."""
    token: str | None = None
    """Which token is the feature: cls, dist or mean."""
    device: str | None = None
    """cpu, cuda …; default: a GPU where there is one."""

    def open(self) -> tuple[TrainConfig, Encoder]:
        """The settings of the data, and the encoder on its device."""
        if self.run is None:
            config = TrainConfig(dataset=self.dataset or "aviary", encoder=self.encoder, dim=None)
            encoder = Encoder.create(
                self.encoder,
                weights=self.weights,
                image_size=self.image_size,
                token=self.token,
            ).eval()
        else:
            run = Run.load(self.run)
            config, encoder = run.config, run.encoder()
            if self.dataset not in (None, config.dataset):  # the run's options are of its own data
                config = config.replace(dataset=self.dataset, options={}, allow_partial=False)
        config = config.replace(
            root=self.root or config.root,
            options=self.options or config.options,
            allow_partial=self.allow_partial or config.allow_partial,
        )
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return config, encoder.to(device)


def prepare(
    name: tyro.conf.Positional[str],
    /,
    root: str | None = None,
    options: dict[str, int] = {},  # noqa: B006 (tyro reads the default, nobody changes it)
) -> None:
    """Bring a data set onto this machine: download, verify, unpack; or draw, for the aviary.

    For instance:
      sobook prepare aviary
      sobook prepare aviary --options species 40 seed 1
      sobook prepare cub200 --root ~/datasets

    Args:
        name: aviary, cub200, cars196, sop, inshop or folder.
        root: folder that holds the data sets; default: $SOBOOK_DATA, else data/.
        options: options of the data set.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what is left out: listed in full below
        folder = image_sets.prepare(name, root, **options)
        notes = image_sets.notes(name, root) if name == "folder" else ()
    for note in notes:
        print(f"note: {note}")
    print(folder)


def train(
    config: Annotated[TrainConfig, tyro.conf.arg(name="")], recipe: str | None = None
) -> None:
    """Train an encoder, evaluate it on the test classes, and leave a run folder.

    A finished run with the same settings is opened, not repeated; an unfinished one goes on, from
    its last checkpoint. On several devices: accelerate launch -m sobook train ...

    For instance:
      sobook train
      sobook train --so-weight 100 --seed 1
      sobook train --recipe cub200 --root ~/data --so-weight 100
      sobook train --recipe cub200-tiny --root ~/data --image-size 128 --precision float32
      sobook train --recipe photos --root my_pictures --so-weight 100

    Args:
        config: the settings; what is not named here is that of the recipe, or the default.
        recipe: settings to start from: cub200, cars196, sop, inshop (DeiT-Small), one of these
            with -tiny (DeiT-Tiny), or photos, for a folder of your own. They are in
            data/recipes.toml.
    """
    run = fit(config)
    if _speaks():
        _print_result(run.path.name, run.retrieval)
        print(run.path)


def _train_from(recipe: str | None):
    """The command `train` with a recipe's settings as its defaults."""
    if recipe is None:
        return train

    start = TrainConfig.recipe(recipe)

    def train_recipe(
        config: Annotated[TrainConfig, tyro.conf.arg(name="")] = start,
        recipe: str | None = None,
    ) -> None:
        train(config, recipe)

    train_recipe.__doc__ = train.__doc__
    return train_recipe


def _recipe(arguments: list[str]) -> str | None:
    """The word after --recipe, which has to be known before the other arguments are read."""
    for place, argument in enumerate(arguments):
        if argument == "--recipe" and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.startswith("--recipe="):
            return argument.partition("=")[2]
    return None


def _speaks() -> bool:
    """Of several processes started together, only the first prints."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def evaluate(source: Annotated[Source, tyro.conf.arg(name="")]) -> None:
    """Recall@K, MAP@R and R-precision on the test classes.

    For instance:
      sobook evaluate data/runs/my-run
      sobook evaluate --encoder deit_tiny_patch16_224 --dataset cub200 --root ~/datasets
    """
    config, encoder = source.open()
    result = evaluate_run(config, encoder, progress=True)
    notes = image_sets.notes(
        config.dataset, config.root, allow_partial=config.allow_partial, **config.options
    )
    _print_result(source.run or f"{encoder.name}, frozen", {**result.summary(), "notes": notes})


def compare(runs: tyro.conf.Positional[tuple[str, ...]], /) -> None:
    """Set runs on the same data side by side; differences are to the first.

    Intervals are 95 % bootstrap intervals over classes, paired where two runs are compared.

    For instance:
      sobook compare data/runs/pa data/runs/so100

    Args:
        runs: two or more run folders.
    """
    if len(runs) < 2:
        raise SobookError("compare needs at least two run folders.")
    opened = [Run.load(path) for path in runs]
    data = {(run.config.dataset, str(run.config.options)) for run in opened}
    if len(data) > 1:
        raise SobookError(
            f"the runs are on different data: {sorted(data)}; compare like with like."
        )
    results = [evaluate_run(run.config, run.encoder(), progress=True) for run in opened]
    width = max(len(run.path.name) for run in opened)
    print(f"{'run':{width}}  so_weight  R@1    95 % interval   difference      RMS cos  coherence")
    for run, result in zip(opened, results, strict=True):
        shape = geometry.describe(run.proxies())
        low, high = result.interval(1)
        print(
            f"{run.path.name:{width}}  {run.config.so_weight:<9g}  {result.recall[1]:.3f}  "
            f"{low:.3f} – {high:.3f}   {_difference(results[0], result):14}  "
            f"{shape.rms_cosine:.3f}    {shape.coherence:.3f}"
        )


def embed_images(
    source: Annotated[Source, tyro.conf.arg(name="")], out: Path, split: str = "test"
) -> None:
    """Write the embeddings of a split to an .npz file: embeddings, labels, paths, class_names.

    For instance:
      sobook embed data/runs/my-run --out test.npz
      sobook embed --dataset folder --root ~/pictures --split train --out pictures.npz

    Args:
        source: which encoder, on which images.
        out: the file to write, ending in .npz.
        split: train, validation, test, query or gallery.
    """
    if out.suffix != ".npz":
        raise SobookError(f"--out {out}: the file must end in .npz.")
    config, encoder = source.open()
    found = image_sets.load(
        config.dataset, split, config.root, allow_partial=config.allow_partial, **config.options
    )
    embeddings = embed(encoder, found)
    partial = out.with_name(f".{out.stem}.{os.getpid()}.npz")
    try:
        np.savez(
            partial,
            embeddings=embeddings,
            labels=found.labels,
            paths=np.array([str(path) for path in found.paths]),
            class_names=np.array(found.class_names),
            notes=np.array(found.notes, dtype=str),
        )
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{out}: {len(embeddings):,} embeddings of dimension {embeddings.shape[1]}")
    for note in found.notes:
        print(f"  note: {note}")


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
    from sobook import export

    opened = Run.load(run)
    if onnx is not None:
        print(export.to_onnx(opened, onnx))
    if hub is not None:
        print(export.to_hub(opened, hub))


def explore(
    runs: tyro.conf.Positional[tuple[str, ...]],
    /,
    out: Path = Path("explorer.html"),
    classes: int = 100,
    images: int = 20,
    seed: int = 0,
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
        seed: of the map.
    """
    if out.suffix not in (".html", ".htm"):
        raise SobookError(f"--out {out}: the file must end in .html.")
    from sobook.interactive import (
        explorer,  # here, not above: it brings matplotlib, which takes a second
    )

    opened = [Run.load(path) for path in runs]
    page = explorer.from_runs(opened, classes=classes, per_class=images, seed=seed)
    page.save(out)
    print(f"{out}: {len(page.source.encode()) / 1e6:.1f} MB")


def study(
    files: tyro.conf.Positional[tuple[str, ...]],
    /,
    out: Path | None = None,
    jobs: int | None = None,
    only_gather: bool = False,
) -> None:
    """Do the runs of a study, a grid in a TOML file, and gather them into a table and a figure.

    Finished runs are not repeated: stop it when you like, and start it again. Results are
    NAME.csv (a row a run), NAME.md (means, intervals, where it came from), NAME.json, NAME.png.
    The studies behind notebook 07 are known by their names.

    For instance:
      sobook study aviary_lambda_heads --out results
      sobook study my_study.toml --jobs 2

    Args:
        files: study files, or names of studies that come with sobook.
        out: folder for the results; default: <data root>/study_results.
        jobs: runs at a time; default: a run for each GPU, or for each core where only heads learn.
        only_gather: start nothing, gather what is finished.
    """
    if not files:
        raise SobookError("study needs a study file, or the name of one that comes with sobook.")
    out = files.data_root() / "study_results" if out is None else out.expanduser()
    for file in files:
        one = studies.load(file)
        table = studies.gather(one) if only_gather else studies.run(one, jobs=jobs)
        if table.empty:
            raise SobookError(f"study {one.name}: no run is finished yet, so there is no table.")
        where = out.name if out.is_absolute() else out.as_posix()
        command = f"sobook study {one.name} --out {where}"
        for written in studies.write(one, table, out, command):
            print(written)
        left = len(one.plan()) - len(table)
        print(f"{one.name}: {len(table)} runs" + (f", {left} not done yet" if left else ""))


def search_pictures(
    source: Annotated[Source, tyro.conf.arg(name="")],
    folder: Path | None = None,
    index: Path | None = None,
    query: tuple[str, ...] = (),
    k: int = 5,
    page: Path | None = None,
) -> None:
    """Search in a folder of pictures: the nearest of a query, or a page to search in a browser.

    For instance:
      sobook search data/runs/my-run --folder ~/pictures --query bird.jpg
      sobook search data/runs/my-run --folder ~/pictures --index pictures.npz --page search.html
      sobook search data/runs/my-run --index pictures.npz --query bird.jpg other.jpg

    Args:
        source: the encoder: a run, or one by name. (Its data set options are not used.)
        folder: pictures to index, subfolders included.
        index: .npz to write the index to or, without --folder, to read it from.
        query: pictures whose nearest are printed, one line a neighbor: cosine, class, file.
        k: neighbors for each query.
        page: HTML file to write, with the indexed pictures in it; it needs no network.
    """
    if folder is None and index is None:
        raise SobookError("search needs --folder, the pictures to index, or --index, a saved one.")
    _, encoder = source.open()
    if folder is None:
        found = search.Index.load(index)
    else:
        found = search.index_folder(encoder, folder)
        for note in found.left_out:
            print(f"note: {note}")
        if index is not None:
            print(f"{found.save(index)}: {len(found):,} pictures")
    for picture in query:
        similarities, places = found.search(encoder, picture, k)
        print(picture)
        for similarity, i in zip(similarities, places, strict=True):
            print(f"  {similarity:+.3f}  {found.names[i] or '–'}  {found.paths[i]}")
    if page is not None:
        print(search.page(found, page))


def grade_notebooks(
    notebooks: tyro.conf.Positional[tuple[Path, ...]],
    /,
    out: Path,
    timeout: float = 900.0,
    execute: bool = True,
) -> None:
    """Run students' notebooks and write a CSV: one line a notebook and exercise, passed or why not.

    Each runs in a kernel of its own. That is no prison: students' code runs with your rights, so
    grade on a machine or in a container where that does no harm.

    For instance:
      sobook grade handed-in/*.ipynb --out grades.csv
      sobook grade handed-in/03_ada.ipynb --out grades.csv --timeout 300
      sobook grade handed-in/*.ipynb --out grades.csv --no-execute

    Args:
        notebooks: the files handed in; 03_….ipynb, or any name, since the exercises tell.
        out: the CSV to write.
        timeout: seconds for each notebook.
        execute: run them anew; --no-execute only reads the verdicts saved in the file.
    """
    if not notebooks:
        raise SobookError("grade needs one notebook or more.")
    rows = []
    for path in notebooks:
        rows += (found := grading.grade(path, timeout=timeout, execute=execute))
        passed = sum(row.passed for row in found)
        print(f"{path}: {passed} of {len(found)} passed")
    print(grading.write(rows, out))


def _difference(first: Retrieval, other: Retrieval) -> str:
    if first is other:
        return "–"
    value, low, high = difference(first, other)
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _print_result(title: str, result: dict) -> None:
    low, high = result[next(key for key in result if key.endswith("_interval"))]
    recalls = "  ".join(f"R@{k} {value:.3f}" for k, value in result["recall"].items())
    print(f"{title}: {recalls}")
    print(f"  95 % interval of the first over classes {low:.3f} – {high:.3f}", end="; ")
    print(f"MAP@R {result['map_at_r']:.3f}, R-precision {result['r_precision']:.3f}", end="; ")
    print(f"{result['queries']:,} queries")
    for note in result.get("notes", ()):
        print(f"  note: {note}")


COMMANDS = {
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "embed": embed_images,
    "export": export_run,
    "explore": explore,
    "study": study,
    "search": search_pictures,
    "grade": grade_notebooks,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 well, 1 an error, 2 wrong usage."""
    warnings.formatwarning = lambda message, *_, **__: f"sobook: {message}\n"
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        commands = {**COMMANDS, "train": _train_from(_recipe(arguments))}
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="sobook",
            description="Deep metric learning with soft orthogonal proxies.",
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except (ValueError, TrainingError, OSError) as error:
        if _speaks() or isinstance(error, TrainingError):
            print(f"sobook: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "sobook: stopped; the same command goes on from the last checkpoint.", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
