"""Every recipe script loads, every arm is a recipe, and an arm runs with the flags that a person changes."""

import runpy
import sys
from pathlib import Path

import pytest
from cyclopts import CycloptsError
from public_datasets import make_cohen, make_coronahack
from toy_images import write_toys

from fastcxr.cli import study
from fastcxr.cli.study import parse_and_run, parse_overrides, run_script
from fastcxr.config.recipe import Augmentation, Recipe, Stage, redact_paths
from fastcxr.data.manifest import write_manifest
from fastcxr.errors import InputMissingError, RecipeError, WeightsError
from fastcxr.io.files import write_json
from fastcxr.report.notices import Notice
from fastcxr.workflows import study as published
from fastcxr.workflows.load import read_recipe_manifest

pytestmark = pytest.mark.usefixtures("without_figures")

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "recipes").glob("*.py"))
TINY = Recipe("mobilenetv2_035", weights="none", image_size=64, epochs=1, strategy="full", batch_size=8)
RECIPES = {"first": TINY, "second": TINY.replace(loss="focal", strategy=(Stage(name="mine"),))}


def finish(recipe: Recipe, place: Path, mirror: Path | None = None) -> int:
    """What start_training leaves behind, without an hour of training: recipe, images, figures, report."""
    manifest = read_recipe_manifest(recipe)
    labels = sorted(set(manifest["label"]))
    row = {"precision": 0.25, "recall": 0.75, "f1": 0.375, "sensitivity": 0.75, "specificity": 0.5}
    part = {"labels": labels, "n_images": len(manifest), "accuracy": 0.5, "auroc": {"macro": 0.625}}
    part |= {"top2_accuracy": 0.875, "per_class": dict.fromkeys(labels, row)}
    place.mkdir(parents=True)
    write_manifest(manifest, place / "manifest.csv")
    write_json(place / "metrics.json", {"test": part})
    (place / "recipe.json").write_text(redact_paths(recipe).to_json())
    (place / "report.html").touch()
    return 0


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """The arms that were trained, or would have been: nothing learns here."""
    arms: list[str] = []

    def start(recipe, place, mirror=None):
        arms.append(place.name)
        return finish(recipe, place, mirror)

    monkeypatch.setattr(study, "start_training", start)
    monkeypatch.setattr(published, "read_critical_notices", lambda place: [])
    return arms


def cells(shown: str, arm: str) -> list[str]:
    """What stands in an arm's row of the first table."""
    return next(line for line in shown.splitlines() if line.startswith(f"{arm} ")).replace(" %", "%").split()[1:]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_recipe_script_loads_and_its_arms_are_recipes(script):
    found = runpy.run_path(str(script))
    assert found["RECIPES"]
    assert all(isinstance(recipe, Recipe) for recipe in found["RECIPES"].values())
    assert set(found.get("PAPER", {})) <= set(found["RECIPES"])
    for words in ("Command ", "Paper ", "Limitations ", "Results "):
        assert words in found["__doc__"], f"no line {words.strip()}"


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
    words = ["--epochs", "3", "--data", "x", "--out", "here", "--checkpoint-mirror", "there"]
    recipe, out, mirror = parse_overrides(RECIPES["second"], words)
    assert recipe == RECIPES["second"].replace(epochs=3, data="x")
    assert (out, mirror) == (Path("here"), Path("there"))


def test_a_named_strategy_takes_the_place_of_an_arms_stages():
    assert parse_overrides(RECIPES["second"], ["--strategy", "linear_probe"])[0] == RECIPES["second"].replace(
        strategy="linear_probe"
    )
    with pytest.raises(CycloptsError, match="Choose from"):
        parse_overrides(TINY, ["--strategy", "prob"])


def test_a_second_name_behind_an_arm_is_no_backbone():
    with pytest.raises(CycloptsError):
        parse_overrides(TINY, ["second"])


def test_a_knob_of_augmentation_leaves_the_other_knobs_of_the_arm():
    own = Augmentation(do_flip=True, max_rotate=10.0, pad_mode="reflection")
    words = ["--augment.max-rotate", "3", "--augment.no-do-flip"]
    assert parse_overrides(TINY.replace(augment=own), words)[0].augment == Augmentation(
        do_flip=False, max_rotate=3.0, pad_mode="reflection"
    )


def test_a_list_of_an_arms_own_can_be_emptied():
    arm = TINY.replace(filter=("view=PA",), classes=("clear", "haze"))
    assert parse_overrides(arm, ["--empty-filter"])[0] == arm.replace(filter=())


def test_map_is_another_word_for_relabel():
    assert parse_overrides(TINY, ["--relabel", "a=b", "--relabel", "c=d"])[0].relabel == ("a=b", "c=d")


def test_the_mirror_of_an_arm_lies_below_its_study(monkeypatch):
    seen = []
    monkeypatch.setattr(study, "start_training", lambda *given: seen.append(given) or 0)
    assert parse_and_run("study", RECIPES, {}, ["first", "--data", "x", "--checkpoint-mirror", "there"]) == 0
    assert seen == [(TINY.replace(data="x"), Path("runs/study/first"), Path("there/study"))]


def test_an_unknown_arm_is_refused_with_a_suggestion():
    with pytest.raises(RecipeError, match="Did you mean 'second'"):
        parse_and_run("study", RECIPES, {}, ["secnd"])


def test_all_arms_run_and_stand_beside_the_paper(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study.py", "--all"])
    data = write_toys(tmp_path / "toys", per_class=14)
    words = ["--all", "--data", str(data), "--out", str(tmp_path / "study")]
    assert parse_and_run("study", RECIPES, {"first": {"accuracy": 0.9, "auroc": 0.95}}, words) == 0
    shown = capfd.readouterr().err
    row = next(line for line in shown.splitlines() if line.startswith("first "))
    assert "90.0 %" in row
    assert "0.950" in row
    assert (tmp_path / "study" / "second" / "report.html").exists()
    parse_and_run("study", RECIPES, {"second": {"haze sensitivity": 0.75}}, words)
    shown, of_class = capfd.readouterr().err.split("\nhaze")
    assert "first: finished already, with the same images of toys" in shown
    assert "paper sensitivity" in " ".join(of_class.split())
    assert cells(of_class, "first")[0] == "–"
    assert cells(of_class, "second")[0] == "75.0%"


def test_a_wish_to_stop_ends_the_whole_study(tmp_path, capfd, monkeypatch, toy_folder):
    begun = []
    monkeypatch.setattr(study, "start_training", lambda recipe, place, mirror: begun.append(place.name) or 143)
    words = ["--all", "--data", str(toy_folder), "--out", str(tmp_path)]
    assert parse_and_run("study", RECIPES, {}, words) == 143
    assert begun == ["first"]
    assert "accuracy" not in capfd.readouterr().err


def test_an_arm_that_fails_costs_the_others_neither_their_turn_nor_the_table(tmp_path, capfd, monkeypatch, toy_folder):
    def start(recipe, place, mirror):
        if place.name == "first":
            raise WeightsError("weights are out of reach", "Name a file")
        return finish(recipe, place)

    monkeypatch.setattr(study, "start_training", start)
    monkeypatch.setattr(
        published, "read_critical_notices", lambda place: [Notice("critical", "Doubtful", f"as {place.name} is")]
    )
    words = ["--all", "--data", str(toy_folder), "--out", str(tmp_path)]
    assert parse_and_run("study", RECIPES, {"first": {"accuracy": 0.9}}, words) == WeightsError.exit_code
    shown = capfd.readouterr().err
    assert "fastcxr: first: weights are out of reach. Name a file" in shown
    assert cells(shown, "first") == ["90.0%", "–", "–", "–", "–"]
    assert cells(shown, "second") == ["–", "50.0%", "0.625", "87.5%", "30"]
    assert "Doubtful: second\n" in shown


def test_an_arm_finished_with_another_recipe_is_refused_and_gives_the_table_no_figure(
    tmp_path, capfd, trained, toy_folder
):
    finish(TINY.replace(data=str(toy_folder)), tmp_path / "first")
    words = ["--all", "--data", str(toy_folder), "--out", str(tmp_path), "--epochs", "7"]
    assert parse_and_run("study", RECIPES, {}, words) == 73
    shown = capfd.readouterr().err
    assert "a run with a different recipe (epochs was 1, is 7)" in shown
    assert "choose another --out" in shown
    assert set(cells(shown, "first")) == {"–"}
    assert trained == ["second"]


def test_an_arm_finished_with_other_images_in_a_folder_of_the_same_name_is_refused(tmp_path, capfd, trained):
    small, large = (write_toys(tmp_path / name / "toys", number) for name, number in (("a", 4), ("b", 6)))
    out = ["--out", str(tmp_path / "study")]
    assert parse_and_run("study", RECIPES, {}, ["--all", "--data", str(small), *out]) == 0
    assert parse_and_run("study", RECIPES, {}, ["--all", "--data", str(small), *out]) == 0
    assert "second: finished already, with the same images of toys" in capfd.readouterr().err
    for data, counts in ((large, "6 only in the data, 0"), (tmp_path / "c" / "toys", "3 only in the data")):
        if not data.exists():
            write_toys(data, 4, first=1)
        assert parse_and_run("study", RECIPES, {}, ["--all", "--data", str(data), *out]) == 73
        shown = capfd.readouterr().err
        assert f"a run on other images ({counts}" in shown
        assert "Pass the data of this run, or choose another --out" in shown
    (small / "haze" / "00001000_000.png").unlink()
    assert parse_and_run("study", RECIPES, {}, ["--all", "--data", str(small), *out]) == 73
    assert "(0 only in the data, 1 only in the run)" in capfd.readouterr().err
    assert trained == ["first", "second"]


def test_images_that_a_finished_run_left_out_as_unreadable_make_it_no_other_run(tmp_path, trained):
    data = write_toys(tmp_path / "toys", 4)
    out = ["--data", str(data), "--skip-bad", "--out", str(tmp_path / "study")]
    assert parse_and_run("study", {"first": TINY}, {}, ["--all", *out]) == 0
    (data / "haze" / "torn.png").write_bytes(b"no picture")
    (tmp_path / "study" / "first" / "skipped.csv").write_text("path,code,reason\nhaze/torn.png,E101,torn\n")
    assert parse_and_run("study", {"first": TINY}, {}, ["--all", *out]) == 0
    (data / "haze" / "new.png").write_bytes(b"no picture")
    assert parse_and_run("study", {"first": TINY}, {}, ["--all", *out]) == 73
    assert trained == ["first"]


def test_arms_of_one_recipe_are_trained_once_and_both_shown(tmp_path, capfd, trained, toy_folder):
    words = ["--all", "--data", str(toy_folder), "--out", str(tmp_path)]
    assert parse_and_run("study", RECIPES | {"again": TINY}, {"again": {"accuracy": 0.9}}, words) == 0
    shown = capfd.readouterr().err
    assert "again: the same recipe as first" in shown
    assert cells(shown, "again") == ["90.0%", *cells(shown, "first")[1:]]
    assert trained == ["first", "second"]


def test_top_two_is_shown_where_there_are_more_than_two_classes(tmp_path, capfd, trained, toy_folder):
    words = ["--all", "--data", str(toy_folder), "--out"]
    parse_and_run("study", RECIPES, {}, [*words, str(tmp_path / "three")])
    assert "top-2 accuracy" in " ".join(capfd.readouterr().err.split())
    parse_and_run("study", RECIPES, {}, [*words, str(tmp_path / "two"), "--classes", "haze", "--classes", "clear"])
    assert "top-2" not in capfd.readouterr().err


def test_rachha_finds_the_papers_classes_whatever_their_case_and_signs(tmp_path, capfd, trained):
    data = write_toys(tmp_path / "data", 4)
    for drawn, label in (("clear", "Covid-19"), ("haze", "No_findings"), ("opacity", "Viral")):
        (data / drawn).rename(data / label)
    assert run_script(ROOT / "recipes" / "rachha2020.py", ["--all", "--data", str(data), "--out", str(tmp_path)]) == 0
    shown = capfd.readouterr().err
    *_, covid, nothing, pneumonia = shown.split("\nvariant ")
    b7 = "efficientnet_b7"
    assert cells(covid, b7) == ["95.0%", "25.0%", "100.0%", "75.0%", "98.0%", "37.5%"]
    assert cells(nothing, b7) == ["89.0%", "25.0%", "100.0%", "75.0%", "94.0%", "37.5%"]
    assert cells(pneumonia, b7) == ["100.0%", "–", "83.0%", "–", "91.0%", "–"], "no class of ours is called so"
    assert "\nresnet152 " not in pneumonia, "an arm of which nothing is known has no row"
    assert "fine_resnet101: the same recipe as resnet101" in shown
    assert "fine_resnet101" not in trained


def test_bolhassani_is_two_tables_of_one_and_of_two_collections(tmp_path, capfd, trained):
    script = ROOT / "recipes" / "bolhassani2024.py"
    recipes = runpy.run_path(str(script))["RECIPES"]
    hack = make_coronahack(tmp_path / "hack")
    more = ("6,Pneumonia/Viral/COVID-19,AP Supine,X-ray,f.png,images", "7,Pneumonia/Viral/MERS,PA,X-ray,g.png,images")
    one = ["--data", str(hack)]
    two = [*one, "--data", str(make_cohen(tmp_path / "cohen", *more))]
    extra = [arm for arm in recipes if arm.endswith("_covid")]
    assert run_script(script, ["--all", *one, "--out", str(tmp_path / "out")]) == 0
    assert trained == [arm for arm in recipes if arm not in extra]
    assert f"skipped (another number of --data needed): {', '.join(extra)}" in capfd.readouterr().err
    trained.clear()
    assert run_script(script, ["--all", *two, "--out", str(tmp_path / "out")]) == 0
    assert trained == extra
    shown = capfd.readouterr().err
    assert cells(shown, "PRCE_covid")[-1] == "11", "eight of CoronaHack, three frontal COVID-19 of Cohen"


def test_an_arm_with_another_number_of_collections_is_refused_with_what_to_name(tmp_path):
    script = ROOT / "recipes" / "bolhassani2024.py"
    with pytest.raises(RecipeError, match=r"PRCE_covid takes 2 --data, and got 1\. Name 2, or choose from PRCE, "):
        run_script(script, ["PRCE_covid", "--data", "x"])
    with pytest.raises(RecipeError, match=r"PRCE takes 1 --data, and got 2\. Name 1, or choose from PRCE_covid, "):
        run_script(script, ["PRCE", "--data", "x", "--data", "y"])


def test_usage_tells_the_arms_and_which_of_them_want_two_collections(capfd):
    assert run_script(ROOT / "recipes" / "bolhassani2024.py", []) == 0
    shown = capfd.readouterr().err
    assert "options of train, without --no-resume" in shown
    assert "with 2 --data: PRCE_covid, PRCW_covid" in shown


def test_a_script_that_is_not_there_or_has_no_recipes_is_refused(tmp_path):
    with pytest.raises(InputMissingError, match="Name a file such as"):
        run_script(tmp_path / "nowhere.py", [])
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(RecipeError, match="Give it one: RECIPES"):
        run_script(tmp_path / "empty.py", [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\nRECIPES = {", "line 2: SyntaxError: '{' was never closed"),
        ("import no_such_library", "line 1: ModuleNotFoundError: No module named 'no_such_library'"),
        ("from fastcxr import Recipe\n\nRECIPES = {'a': Recipe(epoch=3)}", "line 3: TypeError: .*'epoch'"),
        ("from fastcxr import Recipe\nRECIPES = {'a': Recipe(epochs=0)}", "line 2: epochs is 0, .*Give another"),
        ("RECIPES = {'a': 1}", "variant 'a' is a int. Make it a Recipe"),
    ],
)
def test_a_broken_script_is_one_line_that_names_the_file_and_its_line(tmp_path, text, said):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(RecipeError, match=said) as caught:
        run_script(tmp_path / "broken.py", ["a"])
    assert str(caught.value).startswith(str(tmp_path / "broken.py"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arm", ["first", "--all"])
def test_help_behind_an_arm_shows_the_flags_and_the_arms_own_choices(capfd, arm):
    assert parse_and_run("study", RECIPES, {}, [arm, "--help"]) == 0
    shown = capfd.readouterr().out
    assert "--learning-rate" in shown
    assert "mobilenetv2_035" in shown
