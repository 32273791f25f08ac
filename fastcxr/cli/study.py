"""Command line of recipe scripts: run one variant with changed options, or all variants."""

import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from fastcxr.cli.app import (
    COMMON_PANEL,
    PANELS,
    TRAIN_FIELDS,
    console,
    make_options_class,
    print_error,
    run_to_exit_code,
    set_default_data,
)
from fastcxr.cli.launch import start_training
from fastcxr.config.recipe import Augmentation, Recipe, make_data_name
from fastcxr.errors import FastcxrError, InputMissingError, RecipeError
from fastcxr.progress.base import silence_logging
from fastcxr.workflows.run_state import find_finished_report
from fastcxr.workflows.study import PublishedMetrics, compare_with_paper, group_critical_notices

SourceCounts = Mapping[str, int]


def study_main(
    recipes: Mapping[str, Recipe], paper: PublishedMetrics | None = None, source_counts: SourceCounts | None = None
) -> None:
    """The command line of a recipe script, `SCRIPT VARIANT [options of train]` or `SCRIPT --all [flags]`.

    `paper`: the published metrics of a variant, from 0 to 1: accuracy, auroc, or one of a class ("COVID-19 recall").
    `source_counts`: the number of --data that a variant takes; a variant that is not named takes any number.
    """
    study = Path(sys.argv[0]).stem
    sys.exit(run_to_exit_code(lambda: parse_and_run(study, recipes, paper or {}, sys.argv[1:], source_counts or {})))


def run_script(script: Path, arguments: list[str]) -> int:
    """What a recipe script does, without running it as a program."""
    if not script.is_file():
        raise InputMissingError("no such recipe script", "Name a file such as recipes/rachha2020.py", path=script)
    script_globals = load_script(script)
    return parse_and_run(
        script.stem,
        script_globals["RECIPES"],
        script_globals.get("PAPER", {}),
        arguments,
        script_globals.get("SOURCES", {}),
    )


def load_script(script: Path) -> dict[str, Any]:
    """The names that a recipe script defines. Raises RecipeError, with its line, where the script itself is wrong."""
    try:
        script_globals = runpy.run_path(str(script))
    except Exception as error:  # whatever a script of somebody's own may raise
        line = find_error_line(error, script)
        location = f"{script}, line {line}" if line else script
        if isinstance(error, RecipeError):
            raise RecipeError(error.problem, error.fix, path=location) from error
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RecipeError(problem, "Correct the script there", path=location) from error
    if not isinstance(script_globals.get("RECIPES"), Mapping):
        raise RecipeError(f"{script} has no dict RECIPES", "Give it one: RECIPES = {'variant': Recipe(...)}")
    for variant, recipe in script_globals["RECIPES"].items():
        if not isinstance(recipe, Recipe):
            raise RecipeError(f"variant {variant!r} is a {type(recipe).__name__}", "Make it a Recipe(...)", path=script)
    return script_globals


def find_error_line(error: Exception, script: Path) -> int | None:
    """The line of a script on which it went wrong, also where a function that it calls raised the error."""
    if isinstance(error, SyntaxError) and error.filename == str(script):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(script)]
    return lines[-1] if lines else None


def parse_and_run(
    study: str,
    recipes: Mapping[str, Recipe],
    paper: PublishedMetrics,
    arguments: list[str],
    source_counts: SourceCounts | None = None,
) -> int:
    """Carry out the words of a command line; returns the exit code."""
    source_counts = source_counts or {}
    if not arguments or arguments[0] in ("-h", "--help"):
        show_usage(study, recipes, source_counts)
        return 0
    variant, *flags = arguments
    if variant != "--all" and variant not in recipes:
        close_matches = get_close_matches(variant, recipes, n=1)
        suggestion = f"Did you mean {close_matches[0]!r}?" if close_matches else f"Choose from {', '.join(recipes)}"
        raise RecipeError(f"{study} has no variant called {variant!r}", suggestion)
    if {"-h", "--help"} & set(flags):
        return show_flags(study, recipes, variant)
    if variant == "--all":
        return run_all_variants(study, recipes, paper, flags, source_counts)
    recipe, out, mirror = parse_overrides(recipes[variant], flags)
    validate_source_count(variant, recipe, source_counts)
    return start_training(recipe, out or Path("runs") / study / variant, mirror and mirror / study)


def show_usage(study: str, recipes: Mapping[str, Recipe], source_counts: SourceCounts) -> None:
    """What the script can be told."""
    lines = [
        f"usage: {study} VARIANT [options of train, without --no-resume], or {study} --all [options]",
        "--empty-filter, --empty-classes and so on remove the values that a variant sets",
        f"variants: {', '.join(recipes)}",
    ]
    for n_sources in sorted(set(source_counts.values()) - {1}):
        lines.append(
            f"with {n_sources} --data: "
            f"{', '.join(variant for variant in recipes if source_counts.get(variant) == n_sources)}"
        )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def show_flags(study: str, recipes: Mapping[str, Recipe], variant: str) -> int:
    """Show the options that change a variant, with its values as defaults; for --all those of the first variant."""
    recipe = recipes.get(variant) or next(iter(recipes.values()))
    make_override_app(recipe, f"{study} {variant}").help_print([])
    return 0


class WrongSourceCountError(RecipeError):
    """A variant that takes another number of --data than it was given."""


def run_all_variants(
    study: str,
    recipes: Mapping[str, Recipe],
    paper: PublishedMetrics,
    arguments: list[str],
    source_counts: SourceCounts,
) -> int:
    """Run every variant that takes this number of --data, then show the table; return the exit code.

    A variant that fails prints its error and the others continue: the exit code is that of the first failure. An
    interrupt ends all of them.
    """
    run_dirs: dict[str, Path | None] = {}
    run_dir_by_recipe: dict[Recipe, Path] = {}
    skipped_variants, exit_codes = [], []
    for variant, recipe in recipes.items():
        try:
            changed_recipe, out, mirror = parse_overrides(recipe, arguments)
            validate_source_count(variant, changed_recipe, source_counts)
            run_dir = (out or Path("runs") / study) / variant
            if code := run_variant(changed_recipe, run_dir, mirror and mirror / study, run_dir_by_recipe):
                return code
            run_dirs[variant] = run_dir_by_recipe[changed_recipe]
        except WrongSourceCountError:
            skipped_variants.append(variant)
        except FastcxrError as error:
            run_dirs[variant] = None
            exit_codes.append(print_error(f"{variant}: {error}", error.exit_code))
    show_study(run_dirs, skipped_variants, paper)
    return exit_codes[0] if exit_codes else 0


def run_variant(recipe: Recipe, run_dir: Path, mirror: Path | None, run_dir_by_recipe: dict[Recipe, Path]) -> int:
    """Train a variant unless its recipe is in `run_dir_by_recipe`, and add it there; return the exit code."""
    if recipe in run_dir_by_recipe:
        print_line(f"{run_dir.name}: the same recipe as {run_dir_by_recipe[recipe].name}")
        return 0
    recipe_with_data = set_default_data(recipe)
    if is_variant_finished(recipe_with_data, run_dir):
        print_line(f"{run_dir.name}: finished already, with the same images of {make_data_name(recipe_with_data.data)}")
    else:
        console.rule(run_dir.name)
        if code := start_training(recipe_with_data, run_dir, mirror):
            return code
    run_dir_by_recipe[recipe] = run_dir
    return 0


def is_variant_finished(recipe: Recipe, run_dir: Path) -> bool:
    """Whether a run of this recipe is finished here. Raises OutputError for one of another recipe, or other images."""
    with silence_logging():
        return find_finished_report(run_dir, recipe) is not None


def show_study(run_dirs: Mapping[str, Path | None], skipped_variants: Sequence[str], paper: PublishedMetrics) -> None:
    """Show the metrics of all variants beside the published ones, critical notices, and skipped variants."""
    if skipped_variants:
        print_line(f"skipped (another number of --data needed): {', '.join(skipped_variants)}")
    for table in compare_with_paper(run_dirs, paper) if run_dirs else ():
        console.print()
        console.print(table)
    for title, variants in group_critical_notices(run_dirs).items():
        print_line(f"{title}: {', '.join(variants)}")


def validate_source_count(variant: str, recipe: Recipe, source_counts: SourceCounts) -> None:
    """Raise WrongSourceCountError for a variant that takes another number of --data: it is another experiment."""
    n_given = len(recipe.data) if isinstance(recipe.data, tuple) else 1
    n_expected = source_counts.get(variant, n_given)
    if n_given != n_expected:
        fitting_variants = [other for other, number in source_counts.items() if number == n_given]
        choice_text = f", or choose from {', '.join(fitting_variants)}" if fitting_variants else ""
        raise WrongSourceCountError(
            f"{variant} takes {n_expected} --data, and got {n_given}", f"Name {n_expected}{choice_text}"
        )


def print_line(line: str) -> None:
    """Print one line about a variant."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def parse_overrides(recipe: Recipe, arguments: list[str]) -> tuple[Recipe, Path | None, Path | None]:
    """Return the recipe changed by these options of train, --out, and --checkpoint-mirror.

    Options that are not given keep the values of the recipe. Strategies are given by name.
    """
    return make_override_app(recipe)(arguments, exit_on_error=False, print_error=False, result_action="return_value")


def make_override_app(recipe: Recipe, name: str = "variant") -> App:
    """Return a command line of the options that change this recipe."""
    recipe_options = make_options_class(
        "RecipeOptions", *(name for name in TRAIN_FIELDS if name != "augment"), defaults=recipe, common_panel=True
    )
    augmentation_options = make_options_class(
        "AugmentationOptions", *(item.name for item in fields(Augmentation)), defaults=recipe.augment
    )
    app = App(name=name, help_flags=[], version_flags=[])

    @app.default
    def change(
        *,  # a second name would be another variant, and no backbone
        values: Annotated[recipe_options, Parameter(name="*")] = recipe_options(),  # noqa: B008
        augment: Annotated[augmentation_options, Parameter(group=PANELS["Augmentation"])] = augmentation_options(),  # noqa: B008
        out: Annotated[Path | None, Parameter(group=COMMON_PANEL)] = None,
        checkpoint_mirror: Annotated[Path | None, Parameter(group=PANELS["Compute"])] = None,
    ):
        changed_recipe = recipe.replace(**vars(values), augment=Augmentation(**vars(augment)))
        return changed_recipe, out, checkpoint_mirror

    return app
