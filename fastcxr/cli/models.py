"""Commands on models and what they leave behind: predict, explain, models, cache."""

import sys
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from fastcxr.cli.app import PARTIAL, app, console, next_folder
from fastcxr.cli.tables import show_kept
from fastcxr.config.fields import Arithmetic
from fastcxr.errors import InputMissingError, OutputError, RecipeError
from fastcxr.progress.terminal import TerminalProgress


@app.command
def predict(
    folder: Path,
    *paths: Path,
    csv: Path | None = None,
    engine: Literal["torch", "openvino"] = "torch",
    precision: Arithmetic = "trained",
    device: str = "auto",
) -> int:
    """Classify images: a row a file, with a probability for each class, the classes whose threshold it reaches, and
    whether the answer is left open, as it is for a picture that is not like the training images.

    Parameters
    ----------
    folder
        run folder of the trained model
    paths
        images, DICOM files, folders of them, or packed cohorts
    csv
        file to write; without it the table goes to standard output
    engine
        what computes; openvino, an extra, is faster where many images meet a CPU
    precision
        arithmetic of the network: as it was trained, what suits this machine (auto), or one of the others
    device
        auto, cpu, cuda, cuda:1, mps; auto takes a GPU where there is one
    """
    from fastcxr.data.manifest import read_unlabelled
    from fastcxr.inference.predict import predict as predict_table
    from fastcxr.metrics.predictions import write_predictions
    from fastcxr.metrics.thresholds import decide, is_strange
    from fastcxr.models.bundle import load_model

    if not paths:
        raise InputMissingError("no image was named", "Give files or folders after the run folder")
    if csv and not csv.parent.is_dir():
        raise OutputError("no such folder", "Make it first, or choose another --csv", path=csv.parent)
    if engine == "openvino":
        device = only_cpu(device)
    table, classifier = read_unlabelled(paths), load_model(folder, precision=precision, device=device)
    console.print(f"arithmetic: {classifier.arithmetic}", highlight=False)
    if engine == "openvino":
        from fastcxr.inference.openvino import to_openvino

        classifier = to_openvino(classifier)
    predicted = predict_table(classifier, table, splits=None, progress=TerminalProgress(console))
    predictions = decide(predicted, classifier.decisions)
    write_predictions(predictions, csv or sys.stdout)
    bad = predictions.table["error"].ne("")
    for row in predictions.table[bad].to_dict("records"):
        console.print(
            f"{row['path']}: {row['error']}", style="bold yellow", markup=False, highlight=False, soft_wrap=True
        )
    strange = int(is_strange(predictions).sum())
    words = f", {strange:,} not like the training images, left open" if classifier.gate else "; this model has no gate"
    said = f"{len(table) - bad.sum() - strange:,} images classified, {bad.sum():,} not readable{words}"
    console.print(said, highlight=False)
    return PARTIAL if bad.any() else 0


def only_cpu(device: str) -> str:
    """Where OpenVINO computes. Raises RecipeError for a device that it would not take."""
    if device not in ("auto", "cpu"):
        raise RecipeError(f"--engine openvino computes on the CPU, and --device is {device}", "Leave one of them out")
    return "cpu"


@app.command
def explain(
    folder: Path,
    *paths: Path,
    classes: Annotated[tuple[str, ...], Parameter(name="--class")] = (),
    method: Literal["grad_cam", "integrated_gradients", "occlusion"] = "grad_cam",
    device: str = "auto",
    out: Path | None = None,
) -> int:
    """Show where in images a model finds its evidence: heat maps, one page, and a table. Maps that would look the same
    with random weights are withheld.

    Parameters
    ----------
    folder
        run folder of the trained model
    paths
        images, DICOM files, folders of them, or packed cohorts
    classes
        class to explain beside the predicted one; may be given several times
    method
        how maps are made; all but grad_cam need captum, an extra, and take longer
    device
        auto, cpu, cuda, cuda:1, mps; auto takes a GPU where there is one
    out
        folder to make; without it runs/explain-RUN-NUMBER
    """
    from fastcxr.data.manifest import read_unlabelled
    from fastcxr.models.bundle import load_model
    from fastcxr.workflows.explain import write_explanation

    if not paths:
        raise InputMissingError("no image was named", "Give files or folders after the run folder")
    table, classifier = read_unlabelled(paths), load_model(folder, device=device)
    place = out or next_folder(f"explain-{folder.resolve().name}")
    page, bad = write_explanation(
        classifier, table, place, classes=classes, method=method, progress=TerminalProgress(console)
    )
    console.print(f"{len(table) - bad:,} images explained, {bad:,} not readable", highlight=False)
    print(page)
    return PARTIAL if bad else 0


@app.command
def models(pattern: str = "*") -> int:
    """List backbones with their parameters, native size and whether pretrained weights exist.

    Parameters
    ----------
    pattern
        part of a name, or shell wildcards such as 'resnet*'
    """
    from fastcxr.models.registry import list_backbones

    rows = list_backbones(pattern)
    first = next(rows, None)
    if first is None:
        raise InputMissingError(f"no backbone matches {pattern!r}", "Try a shorter part of the name")
    print(f"{'name':<52} {'library':<12} {'parameters':>11} {'native px':>9}  pretrained")
    for row in chain([first], rows):
        parameters = f"{row['parameters'] / 1e6:.1f} M"
        mark = "yes" if row["pretrained"] else "no"
        print(f"{row['name']:<52} {row['library']:<12} {parameters:>11} {row['native_size']:>9}  {mark}")
    return 0


@app.command
def cache(*, clear: bool = False) -> int:
    """Show the pictures that were decoded once and the features that are kept for every run, or remove them.

    Parameters
    ----------
    clear
        remove all that no running process uses
    """
    from fastcxr.data.cache.features import clear_banks, list_banks
    from fastcxr.data.cache.quota import clear as clear_all
    from fastcxr.data.cache.quota import list_kept, pictures_folder

    print(pictures_folder())
    if not clear:
        show_kept(console, list_kept(), list_banks())
        return 0
    freed, left = clear_all()
    freed += clear_banks()
    console.print(f"freed {freed / 1e6:,.1f} MB", highlight=False)
    if left:
        console.print("in use by a running process, and kept:", highlight=False)
        show_kept(console, left, [])
    return 0
