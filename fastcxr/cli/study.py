"""Command line of recipe scripts: run one variant with changed options, or all variants."""

import runpy
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from fastcxr.cli.app import COMMON_PANEL, PANELS, TRAIN_FIELDS, format_default, make_options_class, set_default_data
from fastcxr.cli.launch import describe_run, get_command, start_training
from fastcxr.cli.output import (
    OutputOptions,
    console,
    make_error,
    print_error,
    print_line,
    print_result,
    print_warning,
    run_to_exit_code,
    use_output_options,
)
from fastcxr.cli.pieces import start_piece
from fastcxr.cli.processes import reject_torchrun
from fastcxr.cli.workers import IN_THIS_PROCESS, WorkerOptions, open_executor
from fastcxr.config.fields import unknown_name_error
from fastcxr.config.recipe import Augmentation, Recipe
from fastcxr.config.recipe_paths import make_data_name
from fastcxr.errors import FastcxrError, InputMissingError, RecipeError, require_type
from fastcxr.executors.run_tasks import run_tasks
from fastcxr.executors.worker import Task
from fastcxr.io.formatting import pluralize
from fastcxr.progress.base import silence_logging
from fastcxr.progress.terminal import TerminalProgress, print_table
from fastcxr.tracking.base import TrackerName
from fastcxr.training.interrupt import Interrupted, handle_signals
from fastcxr.workflows.run_state import find_finished_report
from fastcxr.workflows.study import PublishedMetrics, compare_with_paper, group_critical_notices

DatasetCounts = Mapping[str, int]
Pieces = Mapping[str, tuple[Recipe, Path, Path | None, tuple[str, ...]]]


def study_main(
    recipes: Mapping[str, Recipe], paper: PublishedMetrics | None = None, dataset_counts: DatasetCounts | None = None
) -> None:
    """Run the command line of a recipe script, `SCRIPT VARIANT [options]` or `SCRIPT --all [options]`.

    Args:
        recipes: recipe of each variant.
        paper: published metrics of a variant, from 0 to 1: accuracy, auroc, or one of a class ("COVID-19 recall").
        dataset_counts: number of datasets in --data that a variant needs; by default any number.
    """
    require_type("recipes", recipes, Mapping)
    study = Path(sys.argv[0]).stem
    sys.exit(run_to_exit_code(lambda: parse_and_run(study, recipes, paper or {}, sys.argv[1:], dataset_counts or {})))


def run_script(script: Path, arguments: list[str]) -> int:
    """Run the command line of a recipe script in this process and return the exit code."""
    if not script.is_file():
        raise InputMissingError("no such recipe script", "Pass a file such as recipes/rachha2020.py", path=script)
    script_globals = load_script(script)
    paper, dataset_counts = script_globals.get("PAPER", {}), script_globals.get("SOURCES", {})
    return parse_and_run(script.stem, script_globals["RECIPES"], paper, arguments, dataset_counts)


def load_script(script: Path) -> dict[str, Any]:
    """Return the globals of a recipe script. Raises RecipeError with the line at fault if the script is invalid."""
    try:
        script_globals = runpy.run_path(str(script))
    except Exception as error:  # the code of a user may raise anything
        line = find_error_line(error, script)
        location = f"{script}, line {line}" if line else script
        if isinstance(error, RecipeError):
            raise RecipeError(error.problem, error.fix, path=location) from error
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RecipeError(problem, "Correct the script", path=location) from error
    if not isinstance(script_globals.get("RECIPES"), Mapping):
        raise RecipeError("no dict RECIPES", "Define RECIPES = {'variant': Recipe(...)}", path=script)
    for variant, recipe in script_globals["RECIPES"].items():
        if not isinstance(recipe, Recipe):
            problem = f"variant {variant!r} is of type {type(recipe).__name__}"
            raise RecipeError(problem, "Make it a Recipe(...)", path=script)
    return script_globals


def find_error_line(error: Exception, script: Path) -> int | None:
    """Return the last line of the script in the traceback of an error, None if there is none."""
    if isinstance(error, SyntaxError) and error.filename == str(script):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(script)]
    return lines[-1] if lines else None


def parse_and_run(
    study: str,
    recipes: Mapping[str, Recipe],
    paper: PublishedMetrics,
    arguments: list[str],
    dataset_counts: DatasetCounts | None = None,
) -> int:
    """Parse and run a command line; return the exit code."""
    dataset_counts = dataset_counts or {}
    named, workers, arguments = take_study_options(arguments)
    if named and "--all" in arguments:
        raise RecipeError("--all and --variant cannot be combined", "Leave one of them out")
    if not named and (not arguments or arguments[0] in ("-h", "--help")):
        show_usage(study, recipes, dataset_counts)
        return 0
    variants, options = (named, arguments) if named else ([arguments[0]], arguments[1:])
    for variant in variants:
        if variant != "--all" and variant not in recipes:
            raise unknown_name_error(variant, recipes, f"{study} has no variant called")
    variant = variants[0]
    if {"-h", "--help"} & set(options):
        recipe = recipes.get(variant) or next(iter(recipes.values()))  # --all: the values of the first variant
        make_override_app(recipe, f"{study} {variant}").help_print([])
        return 0
    if variant == "--all" or len(variants) > 1:
        reject_torchrun("several variants of a study")
    if variant == "--all":
        return run_all_variants(study, recipes, paper, options, dataset_counts, workers)
    if len(variants) > 1:
        return run_all_variants(study, {v: recipes[v] for v in variants}, paper, options, dataset_counts, workers)
    recipe, out, mirror, track = parse_overrides(recipes[variant], options)
    validate_dataset_count(variant, recipe, dataset_counts)
    return start_variant(recipe, out or Path("runs") / study / variant, mirror and mirror / study, workers, track)


def start_variant(
    recipe: Recipe,
    folder: Path,
    mirror: Path | None,
    workers: WorkerOptions = IN_THIS_PROCESS,
    track: tuple[str, ...] = (),
) -> int:
    """Train one variant, or the fold that it names, and return the exit code."""
    if recipe.folds and recipe.fold:
        whole = recipe.replace(fold=None)
        return start_piece(lambda: (set_default_data(whole), folder), str(recipe.fold), mirror, track=track)
    return start_training(recipe, folder, mirror, workers, track)


def take_study_options(arguments: list[str]) -> tuple[list[str], WorkerOptions, list[str]]:
    """Use the output options among these arguments; return the values of --variant, the workers, and the others."""
    app = App(name="output", help_flags=[], version_flags=[])

    @app.default
    def take(
        *others: Annotated[str, Parameter(allow_leading_hyphen=True)],
        variant: tuple[str, ...] = (),
        workers: WorkerOptions = IN_THIS_PROCESS,
        output: OutputOptions = OutputOptions(),  # noqa: B008  it is frozen
    ) -> tuple[list[str], WorkerOptions, list[str]]:
        use_output_options(output)
        return list(variant), workers, list(others)

    return app(arguments, exit_on_error=False, print_error=False, result_action="return_value")


def show_usage(study: str, recipes: Mapping[str, Recipe], dataset_counts: DatasetCounts) -> None:
    """Print the usage of a recipe script and its variants."""
    print_line(f"usage: {study} VARIANT [options of train, without --no-resume], or {study} --all [options]")
    print_line("several variants: --variant A --variant B; --jobs N runs N of them at the same time")
    print_line("--empty-filter, --empty-classes and so on remove the values that a variant sets")
    print_line(f"variants: {', '.join(recipes)}")
    for n_datasets in sorted(set(dataset_counts.values()) - {1}):
        variants = [variant for variant in recipes if dataset_counts.get(variant) == n_datasets]
        print_line(f"with {pluralize(n_datasets, 'dataset')} in --data: {', '.join(variants)}")


class WrongDatasetCountError(RecipeError):
    """A number of datasets in --data that differs from the number that a variant needs."""


class StudyEndedError(Exception):
    """A variant that ended with an exit code, such as that of an interrupt."""

    def __init__(self, exit_code: int):
        self.exit_code = exit_code
        super().__init__(f"exit code {exit_code}")


def run_all_variants(
    study: str,
    recipes: Mapping[str, Recipe],
    paper: PublishedMetrics,
    arguments: list[str],
    dataset_counts: DatasetCounts,
    workers: WorkerOptions = IN_THIS_PROCESS,
) -> int:
    """Run all variants that need this number of datasets, print the table of metrics and return the exit code.

    If a variant fails, its error is printed, the others continue, and the exit code is that of the first failure.
    An interrupt ends the study.
    """
    run_dirs: dict[str, Path | None] = {}
    run_dir_by_recipe: dict[Recipe, Path] = {}
    pieces: dict[str, tuple[Recipe, Path, Path | None, tuple[str, ...]]] = {}  # recipe, run folder, mirror, trackers
    skipped_variants, exit_codes = [], []

    def fail(variant: str, error: FastcxrError) -> None:
        run_dirs[variant] = None
        exit_codes.append(print_error(error, f"{variant}: "))

    for variant, recipe in recipes.items():
        try:
            changed_recipe, out, mirror, track = parse_overrides(recipe, arguments)
            validate_dataset_count(variant, changed_recipe, dataset_counts)
            run_dir = (out or Path("runs") / study) / variant
            if changed_recipe in run_dir_by_recipe:
                print_line(f"{variant}: same recipe as {run_dir_by_recipe[changed_recipe].name}")
            else:
                recipe_with_data = set_default_data(changed_recipe)
                if not is_variant_finished(recipe_with_data, run_dir):
                    pieces[variant] = (recipe_with_data, run_dir, mirror and mirror / study, track)
                run_dir_by_recipe[changed_recipe] = run_dir
            run_dirs[variant] = run_dir_by_recipe[changed_recipe]
        except WrongDatasetCountError:
            skipped_variants.append(variant)
        except FastcxrError as error:
            fail(variant, error)
    try:
        if pieces:
            run_variants(pieces, workers, fail)
    except StudyEndedError as error:
        return error.exit_code
    show_study(run_dirs, skipped_variants, paper)
    print_result(None, {"variants": {v: describe_run(run_dir) for v, run_dir in run_dirs.items()}})
    return exit_codes[0] if exit_codes else 0


def is_variant_finished(recipe: Recipe, run_dir: Path) -> bool:
    """Return whether the variant has a report, and print it.

    Raises OutputError if the folder holds a run with another recipe or other images.
    """
    with silence_logging():
        report = find_finished_report(run_dir, recipe)
    if report:
        print_line(f"{run_dir.name}: already finished, with the same images of {make_data_name(recipe.data)}")
    return report is not None


def run_variants(pieces: Pieces, workers: WorkerOptions, on_error: Callable[[str, FastcxrError], None]) -> None:
    """Train each variant; `on_error` is called for one that fails. Raises StudyEndedError after an interrupt."""
    if workers == IN_THIS_PROCESS:
        tasks = {name: Task(train_here, (name, *piece, on_error)) for name, piece in pieces.items()}
        run_tasks(tasks)
        return
    from fastcxr.workflows import variants

    command, devices = get_command(), {recipe.device for recipe, *_ in pieces.values()}
    try:
        with (
            handle_signals(lambda line: print_warning(f"fastcxr: {line}"), command),
            open_executor(workers, devices.pop() if len(devices) == 1 else "several") as executor,
        ):
            assert executor is not None
            variants.run_variants(pieces, executor, TerminalProgress(console), command, on_error)
    except Interrupted as interrupted:
        error = make_error(f"interrupted ({interrupted})", f"Resume with: {command}", interrupted.exit_code)
        raise StudyEndedError(print_error(error)) from interrupted


def train_here(
    name: str,
    recipe: Recipe,
    run_dir: Path,
    mirror: Path | None,
    track: tuple[str, ...],
    on_error: Callable[[str, FastcxrError], None],
) -> None:
    """Train a variant in this process and print its result. Raises StudyEndedError after an interrupt."""
    console.rule(name)
    try:
        code = start_training(recipe, run_dir, mirror, track=track)
    except FastcxrError as error:
        on_error(name, error)
        return
    if code:
        raise StudyEndedError(code)


def show_study(run_dirs: Mapping[str, Path | None], skipped_variants: Sequence[str], paper: PublishedMetrics) -> None:
    """Print measured and published metrics of all variants, critical notices, and skipped variants."""
    if skipped_variants:
        print_line(f"skipped, because they need another number of datasets (--data): {', '.join(skipped_variants)}")
    for table in compare_with_paper(run_dirs, paper) if run_dirs else ():
        console.print()
        print_table(console, table)
    for title, variants in group_critical_notices(run_dirs).items():
        print_line(f"{title}: {', '.join(variants)}")


def validate_dataset_count(variant: str, recipe: Recipe, dataset_counts: DatasetCounts) -> None:
    """Raise WrongDatasetCountError if the variant needs another number of datasets."""
    n_given = len(recipe.data) if isinstance(recipe.data, tuple) else 1
    n_expected = dataset_counts.get(variant, n_given)
    if n_given != n_expected:
        fitting_variants = [other for other, number in dataset_counts.items() if number == n_given]
        others = f", or run {' or '.join(fitting_variants)}" if fitting_variants else ""
        problem = f"{variant} needs {pluralize(n_expected, 'dataset')}, got {n_given}"
        example = " ".join(f"DATASET_{number}" for number in range(1, n_expected + 1)) if n_expected > 1 else "DATASET"
        raise WrongDatasetCountError(problem, f"Pass --data {example}{others}")


def parse_overrides(
    recipe: Recipe, arguments: list[str]
) -> tuple[Recipe, Path | None, Path | None, tuple[TrackerName, ...]]:
    """Return the recipe with these options of train changed, --out, --checkpoint-mirror, and --track."""
    return make_override_app(recipe)(arguments, exit_on_error=False, print_error=False, result_action="return_value")


def make_override_app(recipe: Recipe, name: str = "variant") -> App:
    """Return a command line of the options that change this recipe."""
    recipe_options = make_options_class(
        "RecipeOptions", *(name for name in TRAIN_FIELDS if name != "augment"), defaults=recipe, common_panel=True
    )
    augmentation_options = make_options_class(
        "AugmentationOptions", *(item.name for item in fields(Augmentation)), defaults=recipe.augment
    )
    default_parameter = Parameter(show_default=format_default, consume_multiple=1)
    app = App(name=name, help_flags=[], version_flags=[], default_parameter=default_parameter)

    @app.default
    def change(
        *,  # a positional argument would set the backbone
        values: Annotated[recipe_options, Parameter(name="*")] = recipe_options(),  # noqa: B008  # pyright: ignore[reportInvalidTypeForm]
        augment: Annotated[augmentation_options, Parameter(group=PANELS["Augmentation"])] = augmentation_options(),  # noqa: B008  # pyright: ignore[reportInvalidTypeForm]
        out: Annotated[Path | None, Parameter(group=COMMON_PANEL)] = None,
        checkpoint_mirror: Annotated[Path | None, Parameter(group=PANELS["Compute"])] = None,
        track: Annotated[tuple[TrackerName, ...], Parameter(group=COMMON_PANEL)] = (),
    ):
        changed_recipe = recipe.replace(**vars(values), augment=Augmentation(**vars(augment)))
        return changed_recipe, out, checkpoint_mirror, track

    return app
