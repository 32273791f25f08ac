"""A script's dict of recipes becomes a command line: one arm with changes of one's own, or all of them in a table."""

import json
import runpy
import sys
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.table import Table

from fastcxr.cli import answer_with
from fastcxr.commands.experiments import start_training
from fastcxr.commands.shared import console
from fastcxr.errors import InputMissingError, RecipeError
from fastcxr.evaluation.words import score, share
from fastcxr.recipe import Recipe, choose_fields

Paper = Mapping[str, Mapping[str, float]]
NESTED = ("augment", "strategy", "kind")  # a flag for one part of these would silently reset the others
SHOWN = {"auroc": ("AUROC", score)}  # heading and words of a figure; others are shares, under their own name


def cook(recipes: Mapping[str, Recipe], paper: Paper | None = None) -> None:
    """The command line of a recipe script, `SCRIPT ARM [flags of train]` or `SCRIPT --all [flags]`.

    `paper`: the published figures of an arm, as shares of one: accuracy, auroc, or one of a class ("COVID-19 recall").
    """
    study = Path(sys.argv[0]).stem
    sys.exit(answer_with(lambda: cook_words(study, recipes, paper or {}, sys.argv[1:])))


def cook_script(script: Path, words: list[str]) -> int:
    """What a recipe script does, without running it as a program."""
    if not script.is_file():
        raise InputMissingError("no such recipe script", "Name a file such as recipes/rachha2020.py", path=script)
    found = runpy.run_path(str(script))
    if not isinstance(found.get("RECIPES"), Mapping):
        raise RecipeError(f"{script} has no dict RECIPES", "Give it one: RECIPES = {'arm': Recipe(...)}")
    return cook_words(script.stem, found["RECIPES"], found.get("PAPER", {}), words)


def cook_words(study: str, recipes: Mapping[str, Recipe], paper: Paper, words: list[str]) -> int:
    """Carry out the words of a command line; returns the exit code."""
    if not words or words[0] in ("-h", "--help"):
        console.print(f"usage: {study} ARM [flags of train], or {study} --all [flags]", highlight=False, markup=False)
        console.print("arms: " + ", ".join(recipes), highlight=False, markup=False, soft_wrap=True)
        return 0
    arm, *rest = words
    if arm == "--all":
        return cook_all(study, recipes, paper, rest)
    if arm not in recipes:
        close = get_close_matches(arm, recipes, n=1)
        meant = f"Did you mean {close[0]!r}?" if close else f"Choose from {', '.join(recipes)}"
        raise RecipeError(f"{study} has no arm called {arm!r}", meant)
    recipe, out = read_changes(recipes[arm], rest)
    return start_training(recipe, out or Path("runs") / study / arm)


def cook_all(study: str, recipes: Mapping[str, Recipe], paper: Paper, words: list[str]) -> int:
    """Every arm, one after the other; an arm that is finished is not run again; then the table."""
    for arm, recipe in recipes.items():
        changed, out = read_changes(recipe, words)
        place = (out or Path("runs") / study) / arm
        if (place / "report.html").exists():
            console.print(f"{arm}: finished already", highlight=False)
            continue
        console.rule(arm)
        start_training(changed, place)
    console.print(compare_with_paper({arm: place_of(study, arm, words) for arm in recipes}, paper))
    return 0


def place_of(study: str, arm: str, words: list[str]) -> Path:
    """The run folder of an arm."""
    _, out = read_changes(Recipe(), words)
    return (out or Path("runs") / study) / arm


def read_changes(recipe: Recipe, words: list[str]) -> tuple[Recipe, Path | None]:
    """The recipe with the flags of train that the words give, and --out."""
    names = [item.name for item in fields(Recipe) if item.name not in NESTED]
    choices = choose_fields("Choices", *names, defaults=recipe)
    app = App(help_flags=[], version_flags=[], default_parameter=Parameter(negative_iterable=()))

    @app.default
    def change(values: Annotated[choices, Parameter(name="*")] = choices(), *, out: Path | None = None):  # noqa: B008
        return recipe.but(**vars(values)), out

    return app(words, exit_on_error=False, print_error=False, result_action="return_value")


def compare_with_paper(places: Mapping[str, Path], paper: Paper) -> Table:
    """One row an arm: the paper's figures beside those of the finished run."""
    names = list(dict.fromkeys(["accuracy", "auroc", *(name for figures in paper.values() for name in figures)]))
    published = {name for figures in paper.values() for name in figures}
    table = Table(box=None, pad_edge=False)
    table.add_column("arm")
    for name in names:
        heading, _ = SHOWN.get(name, (name, share))
        for column in ([f"paper {heading}"] if name in published else []) + [heading]:
            table.add_column(column, justify="right")
    table.add_column("images", justify="right")
    for arm, place in places.items():
        part = read_headline(place)
        cells = []
        for name in names:
            _, words = SHOWN.get(name, (name, share))
            cells += [words(paper.get(arm, {}).get(name))] if name in published else []
            cells.append(words(find_figure(part, name)))
        table.add_row(arm, *cells, f"{part['n_images']:,}")
    return table


def find_figure(part: Mapping[str, Any], name: str) -> float | None:
    """A figure of a split by its name, "accuracy" or "CLASS recall"; None where there is none."""
    label, _, figure = name.rpartition(" ")
    return part["per_class"].get(label, {}).get(figure) if label else part.get(name)


def read_headline(place: Path) -> dict[str, Any]:
    """Accuracy, macro AUROC and the number of images of a finished run: of its test split, or of its pooled folds."""
    metrics = json.loads((place / "metrics.json").read_text(encoding="utf-8"))
    part = next(metrics[split] for split in ("test", "oof", "valid") if split in metrics)
    return part | {"auroc": part["auroc"]["macro"]}
