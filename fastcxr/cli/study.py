"""A script's dict of recipes becomes a command line: one arm with changes of one's own, or all of them in a table."""

import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from fastcxr.cli.app import answer_with, choose_fields, console, fail, with_data
from fastcxr.cli.launch import start_training
from fastcxr.config.recipe import Augmentation, Recipe, name_data
from fastcxr.errors import FastcxrError, InputMissingError, RecipeError
from fastcxr.progress.base import unheard
from fastcxr.workflows.run_state import find_finished
from fastcxr.workflows.study import Paper, compare_with_paper, find_doubted

Sources = Mapping[str, int]
APART = ("augment", "kind")  # no plain flags: knobs of one's own, no choice yet


def cook(recipes: Mapping[str, Recipe], paper: Paper | None = None, sources: Sources | None = None) -> None:
    """The command line of a recipe script, `SCRIPT ARM [flags of train]` or `SCRIPT --all [flags]`.

    `paper`: the published figures of an arm, as shares of one: accuracy, auroc, or one of a class ("COVID-19 recall").
    `sources`: how many --data an arm takes; one that is not named takes any number.
    """
    study = Path(sys.argv[0]).stem
    sys.exit(answer_with(lambda: cook_words(study, recipes, paper or {}, sys.argv[1:], sources or {})))


def cook_script(script: Path, words: list[str]) -> int:
    """What a recipe script does, without running it as a program."""
    if not script.is_file():
        raise InputMissingError("no such recipe script", "Name a file such as recipes/rachha2020.py", path=script)
    found = read_script(script)
    return cook_words(script.stem, found["RECIPES"], found.get("PAPER", {}), words, found.get("SOURCES", {}))


def read_script(script: Path) -> dict[str, Any]:
    """The names that a recipe script defines. Raises RecipeError, with its line, where the script itself is wrong."""
    try:
        found = runpy.run_path(str(script))
    except Exception as error:  # whatever a script of somebody's own may raise
        line = find_line(error, script)
        place = f"{script}, line {line}" if line else script
        if isinstance(error, RecipeError):
            raise RecipeError(error.what, error.fix, path=place) from error
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RecipeError(what, "Correct the script there", path=place) from error
    if not isinstance(found.get("RECIPES"), Mapping):
        raise RecipeError(f"{script} has no dict RECIPES", "Give it one: RECIPES = {'arm': Recipe(...)}")
    for arm, recipe in found["RECIPES"].items():
        if not isinstance(recipe, Recipe):
            raise RecipeError(f"arm {arm!r} is a {type(recipe).__name__}", "Make it a Recipe(...)", path=script)
    return found


def find_line(error: Exception, script: Path) -> int | None:
    """The line of a script on which it went wrong, also where a function that it calls raised the error."""
    if isinstance(error, SyntaxError) and error.filename == str(script):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(script)]
    return lines[-1] if lines else None


def cook_words(
    study: str, recipes: Mapping[str, Recipe], paper: Paper, words: list[str], sources: Sources | None = None
) -> int:
    """Carry out the words of a command line; returns the exit code."""
    sources = sources or {}
    if not words or words[0] in ("-h", "--help"):
        show_usage(study, recipes, sources)
        return 0
    arm, *rest = words
    if arm != "--all" and arm not in recipes:
        close = get_close_matches(arm, recipes, n=1)
        meant = f"Did you mean {close[0]!r}?" if close else f"Choose from {', '.join(recipes)}"
        raise RecipeError(f"{study} has no arm called {arm!r}", meant)
    if {"-h", "--help"} & set(rest):
        return show_flags(study, recipes, arm)
    if arm == "--all":
        return cook_all(study, recipes, paper, rest, sources)
    recipe, out, mirror = read_changes(recipes[arm], rest)
    check_sources(arm, recipe, sources)
    return start_training(recipe, out or Path("runs") / study / arm, mirror and mirror / study)


def show_usage(study: str, recipes: Mapping[str, Recipe], sources: Sources) -> None:
    """What the script can be told."""
    lines = [
        f"usage: {study} ARM [flags of train, without --new], or {study} --all [flags]",
        "an arm's own list is emptied with --empty-where, --empty-classes and so on",
        f"arms: {', '.join(recipes)}",
    ]
    for number in sorted(set(sources.values()) - {1}):
        lines.append(f"with {number} --data: {', '.join(arm for arm in recipes if sources.get(arm) == number)}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def show_flags(study: str, recipes: Mapping[str, Recipe], arm: str) -> int:
    """The flags that change an arm, with what the arm chose as their defaults; of --all those of the first."""
    recipe = recipes.get(arm) or next(iter(recipes.values()))
    make_flags(recipe, f"{study} {arm}").help_print([])
    return 0


class UnfitError(RecipeError):
    """An arm that takes another number of --data than it was given."""


def cook_all(study: str, recipes: Mapping[str, Recipe], paper: Paper, words: list[str], sources: Sources) -> int:
    """Every arm that takes so many --data, one after the other, then the table; returns the exit code.

    An arm that fails says so and the others go on: the code is that of the first. A wish to stop ends them all.
    """
    places: dict[str, Path | None] = {}
    done: dict[Recipe, Path] = {}
    left_out, codes = [], []
    for arm, recipe in recipes.items():
        try:
            changed, out, mirror = read_changes(recipe, words)
            check_sources(arm, changed, sources)
            place = (out or Path("runs") / study) / arm
            if code := cook_arm(changed, place, mirror and mirror / study, done):
                return code
            places[arm] = done[changed]
        except UnfitError:
            left_out.append(arm)
        except FastcxrError as error:
            places[arm] = None
            codes.append(fail(f"{arm}: {error}", error.exit_code))
    show_study(places, left_out, paper)
    return codes[0] if codes else 0


def cook_arm(recipe: Recipe, place: Path, mirror: Path | None, done: dict[Recipe, Path]) -> int:
    """Train one of several arms unless its recipe is `done`, and note it there; returns the exit code."""
    if recipe in done:
        say(f"{place.name}: the same recipe as {done[recipe].name}")
        return 0
    named = with_data(recipe)
    if is_finished(named, place):
        say(f"{place.name}: finished already, with the same images of {name_data(named.data)}")
    else:
        console.rule(place.name)
        if code := start_training(named, place, mirror):
            return code
    done[recipe] = place
    return 0


def is_finished(recipe: Recipe, place: Path) -> bool:
    """Whether a run of this recipe is finished here. Raises OutputError for one of another recipe, or other images."""
    with unheard():
        return find_finished(place, recipe) is not None


def show_study(places: Mapping[str, Path | None], left_out: Sequence[str], paper: Paper) -> None:
    """The figures of all arms beside the paper's, what doubts them, and which arms are not among them."""
    if left_out:
        say(f"left out, for they take another number of --data: {', '.join(left_out)}")
    for table in compare_with_paper(places, paper) if places else ():
        console.print()
        console.print(table)
    for title, arms in find_doubted(places).items():
        say(f"{title}: {', '.join(arms)}")


def check_sources(arm: str, recipe: Recipe, sources: Sources) -> None:
    """Raises UnfitError for an arm that takes another number of --data: it would be another experiment."""
    given = len(recipe.data) if isinstance(recipe.data, tuple) else 1
    wanted = sources.get(arm, given)
    if given != wanted:
        others = [other for other, number in sources.items() if number == given]
        choose = f", or choose from {', '.join(others)}" if others else ""
        raise UnfitError(f"{arm} takes {wanted} --data, and got {given}", f"Name {wanted}{choose}")


def say(line: str) -> None:
    """One line about an arm."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def read_changes(recipe: Recipe, words: list[str]) -> tuple[Recipe, Path | None, Path | None]:
    """The recipe with the flags of train that the words give, --out, and --mirror.

    Knobs of augmentation that nobody names stay those of the recipe; of strategies those with a name can be given.
    """
    return make_flags(recipe)(words, exit_on_error=False, print_error=False, result_action="return_value")


def make_flags(recipe: Recipe, name: str = "arm") -> App:
    """A command line of the flags that change this recipe."""
    choices = choose_fields(
        "Choices", *(item.name for item in fields(Recipe) if item.name not in APART), defaults=recipe
    )
    knobs = choose_fields("Knobs", *(item.name for item in fields(Augmentation)), defaults=recipe.augment)
    app = App(name=name, help_flags=[], version_flags=[])

    @app.default
    def change(
        *,  # a second name would be another arm, and no backbone
        values: Annotated[choices, Parameter(name="*")] = choices(),  # noqa: B008
        augment: knobs = knobs(),  # noqa: B008
        out: Path | None = None,
        mirror: Path | None = None,
    ):
        return recipe.but(**vars(values), augment=Augmentation(**vars(augment))), out, mirror

    return app
