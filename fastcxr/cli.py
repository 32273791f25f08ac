"""The command line: words in, a run folder, a table or one line of error out. The only place that prints and exits."""

import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from fastcxr.errors import FastcxrError, InputMissingError, OutputError
from fastcxr.progress import heard_by
from fastcxr.recipe import Recipe, choose_fields, name_data
from fastcxr.terminal import (
    ConsoleMessages,
    TerminalProgress,
    show_cohort,
    show_compared,
    show_findings,
    show_headline,
    show_kept,
    show_scouted,
)
from fastcxr.version import VERSION

PARTIAL, USAGE, DAMAGED, INTERRUPTED = 2, 64, 65, 130  # sysexits, and 128 + SIGINT

app = App(
    name="fastcxr",
    default_parameter=Parameter(negative_iterable=()),
    version=f"fastcxr {VERSION}",
    help="From a folder of chest X-rays to a classifier you can defend. For research, not for diagnosis.",
)
console = Console(stderr=True)
Choices = Annotated[Recipe, Parameter(name="*")]
OF_DATA = (
    "layout", "relabel", "classes", "where", "drop_copies", "patients", "patient_regex", "patient_tag", "seed",
)  # fmt: skip
# the flags of train that say which images, whose they are and where they stand, in train's own words
DescribeChoices = choose_fields("DescribeChoices", "data", *OF_DATA, "split", "given_splits", "split_from")
PackChoices = choose_fields("PackChoices", *OF_DATA, "skip_bad")
ScoutChoices = choose_fields("ScoutChoices", "data", *OF_DATA, "split", "skip_bad", "image_size", "device", "precision")
EvaluateChoices = choose_fields("EvaluateChoices", "data", *OF_DATA, "skip_bad")


@app.command
def train(recipe: Choices = Recipe(), *, out: Path | None = None) -> int:  # noqa: B008  a Recipe is frozen
    """Train a classifier and write its report.

    Parameters
    ----------
    out
        run folder to make; without it runs/DATA-BACKBONE-NUMBER
    """
    recipe = recipe if recipe.data else recipe.but(data=find_data())
    return start_training(recipe, out or next_folder(f"{name_data(recipe.data)}-{recipe.backbone}"))


@app.command
def run(script: Path, *words: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Run an arm of a recipe script, as `python SCRIPT ARM` does: fastcxr run recipes/rachha2020.py resnet101.

    Parameters
    ----------
    script
        file with a dict RECIPES
    words
        name of an arm, or --all; then flags of train that change it
    """
    from fastcxr.cooking import cook_script

    return cook_script(script, list(words))


@app.command
def describe(
    choices: Annotated[DescribeChoices, Parameter(name="*")] = DescribeChoices(),  # noqa: B008  it is frozen
    *,
    out: Path | None = None,
) -> int:
    """Show what is in a cohort before anything is trained: classes, splits, patients, images, gray values, bad files.

    Parameters
    ----------
    out
        folder to make; without it runs/describe-DATA-NUMBER
    """
    from fastcxr.describe import describe as describe_cohort

    page = look_at_data(describe_cohort, "describe", choices, out)
    bad = show_cohort(console, page.parent)
    print(page)
    return PARTIAL if bad else 0


@app.command
def audit(
    choices: Annotated[DescribeChoices, Parameter(name="*")] = DescribeChoices(),  # noqa: B008  it is frozen
    *,
    out: Path | None = None,
) -> int:
    """Look for what could make figures wrong before anything is trained: leaks between splits, copies, shortcuts.

    Parameters
    ----------
    out
        folder to make; without it runs/audit-DATA-NUMBER
    """
    from fastcxr.audit import audit as audit_cohort

    page = look_at_data(audit_cohort, "audit", choices, out)
    failed = show_findings(console, page.parent)
    print(page)
    return DAMAGED if failed else 0


@app.command
def report(folder: Path) -> int:
    """Redraw the report of a finished run, or the page of a described or audited cohort.

    Parameters
    ----------
    folder
        run folder, or one that describe or audit made
    """
    if (folder / "audit.html").exists():
        from fastcxr.evaluation.auditing import draw_audit

        print(draw_audit(folder))
        return 0
    if (folder / "describe.html").exists():
        from fastcxr.evaluation.description import draw_description

        print(draw_description(folder))
        return 0
    from fastcxr.evaluation.report import draw_report

    page = draw_report(folder)
    show_headline(console, folder)
    print(page)
    return 0


@app.command
def evaluate(
    run: Path,
    *,
    choices: Annotated[EvaluateChoices, Parameter(name="*")] = EvaluateChoices(),  # noqa: B008  it is frozen
    map: tuple[str, ...] = (),  # noqa: A002  the flag's name
    out: Path | None = None,
) -> int:
    """Test the model of a finished run on other data, and write its report.

    Parameters
    ----------
    run
        run folder of the trained model
    map
        theirs=ours: what a label of the data is called in the model; another word for --relabel
    out
        folder to make; without it runs/RUN-on-DATA-NUMBER
    """
    from fastcxr.evaluate import evaluate as evaluate_run

    if choices.data is None:
        raise InputMissingError("no data was named", "Give --data DIR, the images to test on")
    data = Recipe(**asdict(choices))
    data = data.but(relabel=(*data.relabel, *map))
    folder = out or next_folder(f"{run.resolve().name}-on-{name_data(data.data)}")
    command = shlex.join(["fastcxr", *sys.argv[1:]])
    page = evaluate_run(run, data, folder, TerminalProgress(console), command=command)
    show_headline(console, folder)
    print(page)
    return 0


@app.command
def compare(*runs: Path, out: Path | None = None) -> int:
    """Compare finished runs on the images that all were scored on: a leaderboard that calls a tie a tie.

    Parameters
    ----------
    runs
        run folders, those of folds and evaluations among them
    out
        folder to make; without it runs/compare-NUMBER
    """
    from fastcxr.compare import compare as compare_runs

    folder = out or next_folder("compare")
    page = compare_runs(runs, folder)
    show_compared(console, folder)
    print(page)
    return 0


@app.command
def predict(folder: Path, *paths: Path, csv: Path | None = None, engine: Literal["torch", "openvino"] = "torch") -> int:
    """Classify images: a row a file, with a probability for each class, the classes whose threshold it reaches, and
    whether the answer is left open.

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
    """
    from fastcxr.data.manifest import read_unlabelled
    from fastcxr.evaluation.decisions import decide
    from fastcxr.evaluation.predictions import write_predictions
    from fastcxr.inference.bundle import load_model
    from fastcxr.inference.predict import predict as predict_table

    if not paths:
        raise InputMissingError("no image was named", "Give files or folders after the run folder")
    if csv and not csv.parent.is_dir():
        raise OutputError("no such folder", "Make it first, or choose another --csv", path=csv.parent)
    table, classifier = read_unlabelled(paths), load_model(folder)
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
    console.print(f"{len(table) - bad.sum():,} images classified, {bad.sum():,} not readable", highlight=False)
    return PARTIAL if bad.any() else 0


@app.command
def verify(run: Path) -> int:
    """Check a run folder: every file against its checksum, every number against predictions.csv.

    Parameters
    ----------
    run
        run folder, or one of folds
    """
    from fastcxr.verify import verify as verify_run

    faults, count = verify_run(run)
    for fault in faults:
        line = f"{fault.path}: {fault.what}"
        console.print(line, style="bold red", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{count:,} files looked at, {len(faults):,} faults", highlight=False)
    return DAMAGED if faults else 0


@app.command
def pack(
    *data: str,
    to: Path,
    size: int | None = None,
    shuffle: bool = False,
    choices: Annotated[PackChoices, Parameter(name="*")] = PackChoices(),  # noqa: B008  it is frozen
) -> int:
    """Write images, labels, names and patients into one HDF5 file, which --data takes.

    Parameters
    ----------
    data
        class folders, a CSV, a known collection or a packed cohort; several are merged
    to
        file to make, ending in .h5
    size
        side of the padded square that images become; without it each keeps its own size
    shuffle
        in an order that the seed draws, instead of that of the data
    """
    from fastcxr.cohort import find_manifest
    from fastcxr.data.manifest import describe_manifest
    from fastcxr.data.packing import pack_cohort, shuffle_rows

    if not data:
        raise InputMissingError("no data was named", "Give a folder, a CSV or a known collection after pack")
    recipe = Recipe(data=data, **asdict(choices))
    manifest = find_manifest(recipe)
    console.print(describe_manifest(manifest), highlight=False, markup=False, soft_wrap=True)
    manifest = shuffle_rows(manifest, recipe.seed) if shuffle else manifest
    print(pack_cohort(manifest, to, size=size, skip_bad=recipe.skip_bad, progress=TerminalProgress(console)))
    return 0


@app.command
def scout(
    *backbones: str,
    choices: Annotated[ScoutChoices, Parameter(name="*")] = ScoutChoices(),  # noqa: B008  it is frozen
    weights: tuple[str, ...] = (),
    out: Path | None = None,
) -> int:
    """Which backbone suits this cohort: a linear head on each frozen candidate, scored on patients it has not seen.

    Parameters
    ----------
    backbones
        names of candidates; without any, a dozen of all kinds
    weights
        NAME=FILE: a weights file for one of them; the others take their pretrained weights
    out
        folder to make; without it runs/scout-DATA-NUMBER
    """
    from fastcxr.scout import CANDIDATES, read_weights
    from fastcxr.scout import scout as scout_backbones

    recipe = Recipe(strategy="probe", **asdict(choices))
    recipe = recipe if recipe.data else recipe.but(data=find_data())
    folder = out or next_folder(f"scout-{name_data(recipe.data)}")
    names = backbones or CANDIDATES
    table = scout_backbones(recipe, names, read_weights(weights), folder, TerminalProgress(console))
    show_scouted(console, table)
    print(folder / "scout.svg")
    return 0


@app.command
def cache(*, clear: bool = False) -> int:
    """Show the pictures that were decoded once and the features that are kept for every run, or remove them.

    Parameters
    ----------
    clear
        remove all that no running process uses
    """
    from fastcxr.data.cache.banks import clear_banks, list_banks
    from fastcxr.data.cache.room import clear as clear_all
    from fastcxr.data.cache.room import list_kept, pictures_folder

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


@app.command
def models(pattern: str = "*") -> int:
    """List backbones with their parameters, native size and whether pretrained weights exist.

    Parameters
    ----------
    pattern
        part of a name, or shell wildcards such as 'resnet*'
    """
    from fastcxr.training.catalogue import list_backbones

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


def look_at_data(look: Callable, word: str, choices: DescribeChoices, out: Path | None) -> Path:
    """Describe or audit the data that the choices name, into a new folder; returns the page."""
    recipe = Recipe(**asdict(choices))
    recipe = recipe if recipe.data else recipe.but(data=find_data())
    folder = out or next_folder(f"{word}-{name_data(recipe.data)}")
    console.print(f"folder: {folder}", highlight=False)
    return look(recipe, folder, TerminalProgress(console), command=shlex.join(["fastcxr", *sys.argv[1:]]))


def start_training(recipe: Recipe, folder: Path) -> int:
    """Train a recipe, all its folds if it has some, into a new folder, and show what came of it."""
    from fastcxr.data.manifest import find_cohorts

    recipe = recipe if recipe.data else recipe.but(data=find_data())
    find_cohorts(recipe.data, recipe.layout)  # a wrong folder is told before torch takes seconds to load
    from fastcxr.cross_validation import cross_validate
    from fastcxr.run import run

    console.print(f"run folder: {folder}", highlight=False)
    start = cross_validate if recipe.folds and not recipe.fold else run
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    page = start(recipe, folder, TerminalProgress(console), command=command)
    show_headline(console, folder)
    print(page)
    return 0


def find_data() -> str:
    """The folder data/ here if it holds class folders, else the bundled sample cohort; says which."""
    from fastcxr.data.cohort.layouts import holds_class_folders
    from fastcxr.data.sample import sample_folder

    if holds_class_folders("data"):
        console.print("no --data given: using the class folders in data/", highlight=False)
        return "data"
    console.print("no --data given and no class folders in data/: using the bundled synthetic sample", highlight=False)
    console.print("drawing it on first use takes about twenty seconds", highlight=False)
    return str(sample_folder())


def next_folder(name: str) -> Path:
    """runs/<name>-<n> with the first free n."""
    stem = re.sub(r"[^\w.-]+", "_", name)
    taken = [
        int(m[1]) for p in Path("runs").glob(f"{stem}-*") if (m := re.fullmatch(rf"{re.escape(stem)}-(\d+)", p.name))
    ]
    return Path("runs") / f"{stem}-{max(taken, default=0) + 1}"


def main() -> None:
    """Entry point of the command `fastcxr`."""
    sys.exit(
        answer_with(lambda: app(sys.argv[1:], exit_on_error=False, print_error=False, result_action="return_value"))
    )


def answer_with(work: Callable[[], int | None]) -> int:
    """Do the work with what the library says aloud; every mistake becomes one line. Returns the exit code."""
    # OpenMP's threads spin while they wait: with anything else running, training becomes ten times slower.
    # It is read when torch loads, so it is set before that; a value of the user's own stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.filterwarnings("ignore", module=r"(?!fastcxr)")  # those of the libraries are not for our users
    try:
        with heard_by(ConsoleMessages(console)):
            return work() or 0
    except CycloptsError as error:
        return fail(str(error), USAGE)
    except FastcxrError as error:
        return fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output, such as head, had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def fail(message: str, code: int) -> int:
    """One line of error; returns the exit code that goes with it."""
    console.print(f"fastcxr: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    return code
