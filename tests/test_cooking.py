"""Every recipe script loads, every arm is a recipe, and an arm runs with the flags that a person changes."""

import runpy
import sys
from pathlib import Path

import pytest
from toys import write_toys

from fastcxr.cooking import cook_words, read_changes
from fastcxr.errors import InputMissingError, RecipeError
from fastcxr.recipe import Recipe, Stage

SCRIPTS = sorted((Path(__file__).parent.parent / "recipes").glob("*.py"))
TINY = Recipe("mobilenetv2_035", weights="none", image_size=64, epochs=1, strategy="deep", batch_size=8)
RECIPES = {"first": TINY, "second": TINY.but(loss="focal", strategy=(Stage(name="mine"),))}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_recipe_script_loads_and_its_arms_are_recipes(script):
    found = runpy.run_path(str(script))
    assert found["RECIPES"]
    assert all(isinstance(recipe, Recipe) for recipe in found["RECIPES"].values())
    assert set(found.get("PAPER", {})) <= set(found["RECIPES"])
    for words in ("Command ", "Paper ", "Here "):
        assert words in found["__doc__"], "a lab page says how, what was published, and what was found here"


def test_recipe_scripts_share_nothing_but_their_imports_and_the_last_line():
    seen: dict[str, str] = {}
    for script in SCRIPTS:
        lines = script.read_text().splitlines()
        runs = {
            "\n".join(lines[i : i + 4]) for i in range(len(lines) - 3) if all(line.strip() for line in lines[i : i + 4])
        }
        assert not [run for run in runs if run in seen], script
        seen |= dict.fromkeys(runs, script.name)


def test_flags_change_an_arm_and_leave_its_other_choices():
    recipe, out = read_changes(RECIPES["second"], ["--epochs", "3", "--data", "x", "--out", "here"])
    assert recipe == RECIPES["second"].but(epochs=3, data="x")
    assert out == Path("here")


def test_an_unknown_arm_is_refused_with_a_suggestion():
    with pytest.raises(RecipeError, match="Did you mean 'second'"):
        cook_words("study", RECIPES, {}, ["secnd"])


def test_all_arms_run_and_stand_beside_the_paper(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study.py", "--all"])
    data = write_toys(tmp_path / "toys", per_class=14)
    words = ["--all", "--data", str(data), "--out", str(tmp_path / "study")]
    assert cook_words("study", RECIPES, {"first": {"accuracy": 0.9, "auroc": 0.95}}, words) == 0
    shown = capfd.readouterr().err
    row = next(line for line in shown.splitlines() if line.startswith("first "))
    assert "90.0 %" in row
    assert "0.950" in row
    assert (tmp_path / "study" / "second" / "report.html").exists()
    cook_words("study", RECIPES, {"second": {"haze sensitivity": 0.75}}, words)
    shown = capfd.readouterr().err
    assert "paper haze sensitivity" in " ".join(shown.split())
    assert "75.0 %" in next(line for line in shown.splitlines() if line.startswith("second "))
    assert "first: finished already" in shown


def test_a_script_that_is_not_there_or_has_no_recipes_is_refused(tmp_path):
    from fastcxr.cooking import cook_script

    with pytest.raises(InputMissingError, match="Name a file such as"):
        cook_script(tmp_path / "nowhere.py", [])
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(RecipeError, match="Give it one: RECIPES"):
        cook_script(tmp_path / "empty.py", [])
