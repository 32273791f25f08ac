"""Recipe scripts: all load, all variants are recipes, and options change a variant."""

import runpy
import sys
from pathlib import Path

import pytest
from cyclopts import CycloptsError
from public_datasets import make_cohen, make_coronahack
from tiny_network import NAME
from toy_images import write_toys

from fastcxr.cli import study
from fastcxr.cli.study import parse_and_run, parse_overrides, run_script
from fastcxr.cli.workers import IN_THIS_PROCESS
from fastcxr.config.recipe import Augmentation, Recipe, Stage
from fastcxr.config.recipe_paths import redact_paths
from fastcxr.data.manifest_file import write_manifest
from fastcxr.errors import InputMissingError, RecipeError, WeightsError
from fastcxr.io.files import write_json
from fastcxr.report.notices import Notice
from fastcxr.workflows import study as published
from fastcxr.workflows.load import read_recipe_manifest

pytestmark = pytest.mark.usefixtures("without_figures", "without_maps", "few_draws")

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "recipes").glob("*.py"))
TINY = Recipe(NAME, weights="none", image_size=64, epochs=1, strategy="full", batch_size=8)
RECIPES = {"first": TINY, "second": TINY.replace(loss="focal", strategy=(Stage(name="mine"),))}


def write_finished_run(recipe: Recipe, folder: Path, mirror: Path | None = None) -> int:
    """Write the files of a finished run without training: recipe, manifest, metrics, report."""
    manifest = read_recipe_manifest(recipe)
    labels = sorted(set(manifest["label"]))
    row = {"precision": 0.25, "recall": 0.75, "f1": 0.375, "sensitivity": 0.75, "specificity": 0.5}
    part = {"labels": labels, "n_images": len(manifest), "accuracy": 0.5, "auroc": {"macro": 0.625}}
    part |= {"top2_accuracy": 0.875, "per_class": dict.fromkeys(labels, row)}
    folder.mkdir(parents=True)
    write_manifest(manifest, folder / "manifest.csv")
    write_json(folder / "metrics.json", {"test": part})
    (folder / "recipe.json").write_text(redact_paths(recipe).to_json())
    (folder / "report.html").touch()
    return 0


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """Replace training; return the list of variants that would have been trained."""
    variants: list[str] = []

    def start(recipe, folder, mirror=None, track=()):
        variants.append(folder.name)
        return write_finished_run(recipe, folder, mirror)

    monkeypatch.setattr(study, "start_training", start)
    monkeypatch.setattr(published, "read_critical_notices", lambda folder: [])
    return variants


def cells(shown: str, variant: str) -> list[str]:
    """Return the cells of a variant in the first table."""
    return next(line for line in shown.splitlines() if line.startswith(f"{variant} ")).replace(" %", "%").split()[1:]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_recipe_script_loads_and_its_variants_are_recipes(script):
    found = runpy.run_path(str(script))
    assert found["RECIPES"]
    assert all(isinstance(recipe, Recipe) for recipe in found["RECIPES"].values())
    assert set(found.get("PAPER", {})) <= set(found["RECIPES"])
    for words in ("Command ", "Paper ", "Limitations ", "Results "):
        assert words in found["__doc__"], f"no line {words.strip()}"


def test_recipe_scripts_have_no_common_code_of_four_lines():
    seen: dict[str, str] = {}
    for script in SCRIPTS:
        lines = script.read_text().splitlines()
        runs = {
            "\n".join(lines[i : i + 4]) for i in range(len(lines) - 3) if all(line.strip() for line in lines[i : i + 4])
        }
        assert not [run for run in runs if run in seen], script
        seen |= dict.fromkeys(runs, script.name)


def test_options_change_a_variant_and_keep_its_other_values():
    words = ["--epochs", "3", "--data", "x", "--out", "here", "--checkpoint-mirror", "there", "--track", "mlflow"]
    recipe, out, mirror, track = parse_overrides(RECIPES["second"], words)
    assert recipe == RECIPES["second"].replace(epochs=3, data="x")
    assert (out, mirror, track) == (Path("here"), Path("there"), ("mlflow",))


def test_a_named_strategy_replaces_the_stages_of_a_variant():
    assert parse_overrides(RECIPES["second"], ["--strategy", "linear_probe"])[0] == RECIPES["second"].replace(
        strategy="linear_probe"
    )
    with pytest.raises(CycloptsError, match="Choose from"):
        parse_overrides(TINY, ["--strategy", "prob"])


def test_a_second_name_after_a_variant_is_rejected():
    with pytest.raises(CycloptsError):
        parse_overrides(TINY, ["second"])


def test_an_option_of_augmentation_keeps_the_other_options_of_the_variant():
    own = Augmentation(do_flip=True, max_rotate=10.0, pad_mode="reflection")
    words = ["--augment.max-rotate", "3", "--augment.no-do-flip"]
    assert parse_overrides(TINY.replace(augment=own), words)[0].augment == Augmentation(
        do_flip=False, max_rotate=3.0, pad_mode="reflection"
    )


def test_a_list_of_a_variant_can_be_emptied():
    variant = TINY.replace(filter=("view=PA",), classes=("clear", "haze"))
    assert parse_overrides(variant, ["--empty-filter"])[0] == variant.replace(filter=())


def test_relabel_is_repeatable():
    assert parse_overrides(TINY, ["--relabel", "a=b", "--relabel", "c=d"])[0].relabel == ("a=b", "c=d")


def test_the_checkpoint_mirror_of_a_variant_is_below_its_study(monkeypatch):
    seen = []
    monkeypatch.setattr(study, "start_training", lambda *given: seen.append(given) or 0)
    assert parse_and_run("study", RECIPES, {}, ["first", "--data", "x", "--checkpoint-mirror", "there"]) == 0
    assert seen == [(TINY.replace(data="x"), Path("runs/study/first"), Path("there/study"), IN_THIS_PROCESS, ())]


@pytest.mark.needs("pydantic")
def test_the_stages_of_a_variant_are_accepted_where_another_package_has_imported_pydantic():
    import pydantic  # noqa: F401  cyclopts then checks each value a second time

    assert parse_overrides(RECIPES["second"], [])[0] == RECIPES["second"]


def test_an_unknown_variant_is_rejected_with_a_suggestion():
    with pytest.raises(RecipeError, match="Did you mean 'second'"):
        parse_and_run("study", RECIPES, {}, ["seconds"])
    with pytest.raises(RecipeError, match="Did you mean 'PRCE'"):
        parse_and_run("study", {"PRCE": TINY}, {}, ["prce"])


def test_all_variants_run_and_are_compared_with_the_paper(tmp_path, capfd, monkeypatch):
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
    assert "first: already finished, with the same images of toys" in shown
    assert "paper sensitivity" in " ".join(of_class.split())
    assert cells(of_class, "first")[0] == "–"
    assert cells(of_class, "second")[0] == "75.0%"


def test_an_interrupt_ends_the_study(tmp_path, capfd, monkeypatch, toy_folder):
    started = []
    monkeypatch.setattr(
        study, "start_training", lambda recipe, folder, mirror, track: started.append(folder.name) or 143
    )
    words = ["--all", "--data", str(toy_folder), "--out", str(tmp_path)]
    assert parse_and_run("study", RECIPES, {}, words) == 143
    assert started == ["first"]
    assert "accuracy" not in capfd.readouterr().err


def test_a_variant_that_fails_does_not_stop_the_others_or_the_table(tmp_path, capfd, monkeypatch, toy_folder):
    def start(recipe, folder, mirror, track):
        if folder.name == "first":
            raise WeightsError("weights are not available", "Pass a file")
        return write_finished_run(recipe, folder)

    monkeypatch.setattr(study, "start_training", start)
    monkeypatch.setattr(
        published, "read_critical_notices", lambda folder: [Notice("critical", "Doubtful", f"as {folder.name} is")]
    )
    words = ["--all", "--data", str(toy_folder), "--out", str(tmp_path)]
    assert parse_and_run("study", RECIPES, {"first": {"accuracy": 0.9}}, words) == WeightsError.exit_code
    shown = capfd.readouterr().err
    assert "fastcxr: first: weights are not available. Pass a file" in shown
    assert cells(shown, "first") == ["90.0%", "–", "–", "–", "–"]
    assert cells(shown, "second") == ["–", "50.0%", "0.625", "87.5%", "30"]
    assert "Doubtful: second\n" in shown


def test_a_variant_finished_with_another_recipe_is_rejected_and_has_no_metrics_in_the_table(
    tmp_path, capfd, trained, toy_folder
):
    write_finished_run(TINY.replace(data=str(toy_folder)), tmp_path / "first")
    words = ["--all", "--data", str(toy_folder), "--out", str(tmp_path), "--epochs", "7"]
    assert parse_and_run("study", RECIPES, {}, words) == 73
    shown = capfd.readouterr().err
    assert "a run with a different recipe (epochs was 1, is 7)" in shown
    assert "choose another --out" in shown
    assert set(cells(shown, "first")) == {"–"}
    assert trained == ["second"]


def test_a_variant_finished_with_other_images_in_a_folder_of_the_same_name_is_rejected(tmp_path, capfd, trained):
    small, large = (write_toys(tmp_path / name / "toys", number) for name, number in (("a", 4), ("b", 6)))
    out = ["--out", str(tmp_path / "study")]
    assert parse_and_run("study", RECIPES, {}, ["--all", "--data", str(small), *out]) == 0
    assert parse_and_run("study", RECIPES, {}, ["--all", "--data", str(small), *out]) == 0
    assert "second: already finished, with the same images of toys" in capfd.readouterr().err
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


def test_unreadable_images_that_a_finished_run_skipped_do_not_make_it_another_run(tmp_path, trained):
    data = write_toys(tmp_path / "toys", 4)
    out = ["--data", str(data), "--skip-bad", "--out", str(tmp_path / "study")]
    assert parse_and_run("study", {"first": TINY}, {}, ["--all", *out]) == 0
    (data / "haze" / "torn.png").write_bytes(b"no image")
    (tmp_path / "study" / "first" / "skipped.csv").write_text("path,code,reason\nhaze/torn.png,E101,torn\n")
    assert parse_and_run("study", {"first": TINY}, {}, ["--all", *out]) == 0
    (data / "haze" / "new.png").write_bytes(b"no image")
    assert parse_and_run("study", {"first": TINY}, {}, ["--all", *out]) == 73
    assert trained == ["first"]


def test_variants_with_the_same_recipe_are_trained_once_and_both_shown(tmp_path, capfd, trained, toy_folder):
    words = ["--all", "--data", str(toy_folder), "--out", str(tmp_path)]
    assert parse_and_run("study", RECIPES | {"again": TINY}, {"again": {"accuracy": 0.9}}, words) == 0
    shown = capfd.readouterr().err
    assert "again: same recipe as first" in shown
    assert cells(shown, "again") == ["90.0%", *cells(shown, "first")[1:]]
    assert trained == ["first", "second"]


def test_top_2_accuracy_is_shown_for_more_than_two_classes(tmp_path, capfd, trained, toy_folder):
    words = ["--all", "--data", str(toy_folder), "--out"]
    parse_and_run("study", RECIPES, {}, [*words, str(tmp_path / "three")])
    assert "top-2 accuracy" in " ".join(capfd.readouterr().err.split())
    parse_and_run("study", RECIPES, {}, [*words, str(tmp_path / "two"), "--classes", "haze", "--classes", "clear"])
    assert "top-2" not in capfd.readouterr().err


def test_rachha_finds_the_classes_of_the_paper_ignoring_case_and_punctuation(tmp_path, capfd, trained):
    data = write_toys(tmp_path / "data", 4)
    for drawn, label in (("clear", "Covid-19"), ("haze", "No_findings"), ("opacity", "Viral")):
        (data / drawn).rename(data / label)
    assert run_script(ROOT / "recipes" / "rachha2020.py", ["--all", "--data", str(data), "--out", str(tmp_path)]) == 0
    shown = capfd.readouterr().err
    *_, covid, nothing, pneumonia = shown.split("\nvariant ")
    b7 = "efficientnet_b7"
    assert cells(covid, b7) == ["95.0%", "25.0%", "100.0%", "75.0%", "98.0%", "37.5%"]
    assert cells(nothing, b7) == ["89.0%", "25.0%", "100.0%", "75.0%", "94.0%", "37.5%"]
    assert cells(pneumonia, b7) == ["100.0%", "–", "83.0%", "–", "91.0%", "–"], "the dataset has no class of this name"
    assert "\nresnet152 " not in pneumonia, "a variant without any metric has no row"
    assert "fine_resnet101: same recipe as resnet101" in shown
    assert "fine_resnet101" not in trained


@pytest.mark.slow
def test_bolhassani_has_variants_for_one_and_for_two_datasets(tmp_path, capfd, trained):
    script = ROOT / "recipes" / "bolhassani2024.py"
    recipes = runpy.run_path(str(script))["RECIPES"]
    hack = make_coronahack(tmp_path / "hack")
    more = ("6,Pneumonia/Viral/COVID-19,AP Supine,X-ray,f.png,images", "7,Pneumonia/Viral/MERS,PA,X-ray,g.png,images")
    one = ["--data", str(hack)]
    two = [*one, "--data", str(make_cohen(tmp_path / "cohen", *more))]
    extra = [variant for variant in recipes if variant.endswith("_covid")]
    assert run_script(script, ["--all", *one, "--out", str(tmp_path / "out")]) == 0
    assert trained == [variant for variant in recipes if variant not in extra]
    skipped = f"skipped, because they need another number of datasets (--data): {', '.join(extra)}"
    assert skipped in capfd.readouterr().err
    trained.clear()
    assert run_script(script, ["--all", *two, "--out", str(tmp_path / "out")]) == 0
    assert trained == extra
    shown = capfd.readouterr().err
    assert cells(shown, "PRCE_covid")[-1] == "11", "eight of CoronaHack, three frontal COVID-19 of Cohen"


def test_a_variant_with_a_wrong_number_of_datasets_is_rejected(tmp_path):
    script = ROOT / "recipes" / "bolhassani2024.py"
    with pytest.raises(
        RecipeError, match="covid needs 2 datasets, got 1. Pass --data DATASET_1 DATASET_2, or run PRCE or "
    ):
        run_script(script, ["PRCE_covid", "--data", "x"])
    with pytest.raises(RecipeError, match="PRCE needs 1 dataset, got 2. Pass --data DATASET, or run PRCE_covid or "):
        run_script(script, ["PRCE", "--data", "x", "--data", "y"])


def test_the_usage_lists_the_variants_and_their_number_of_datasets(capfd):
    assert run_script(ROOT / "recipes" / "bolhassani2024.py", []) == 0
    shown = capfd.readouterr().err
    assert "options of train, without --no-resume" in shown
    assert "with 2 datasets in --data: PRCE_covid, PRCW_covid" in shown


def test_a_missing_script_or_one_without_recipes_is_rejected(tmp_path):
    with pytest.raises(InputMissingError, match="Pass a file such as"):
        run_script(tmp_path / "nowhere.py", [])
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(RecipeError, match="Define RECIPES"):
        run_script(tmp_path / "empty.py", [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nRECIPES = {", "line 2: SyntaxError: '{' was never closed"),
        ("import no_such_library", "line 1: ModuleNotFoundError: No module named 'no_such_library'"),
        ("from fastcxr import Recipe\n\nRECIPES = {'a': Recipe(epoch=3)}", "line 3: Recipe has no option .*'epochs'"),
        ("from fastcxr import Recipe\nRECIPES = {'a': Recipe(epochs=0)}", "line 2: epochs is 0, .*Change epochs"),
        ("RECIPES = {'a': 1}", "variant 'a' is of type int. Make it a Recipe"),
    ],
)
def test_an_error_in_a_script_is_one_line_with_the_file_and_the_line_number(tmp_path, text, message):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        run_script(tmp_path / "broken.py", ["a"])
    assert str(caught.value).startswith(str(tmp_path / "broken.py"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variant", ["first", "--all"])
def test_help_after_a_variant_shows_the_options_with_its_values(capfd, variant):
    assert parse_and_run("study", RECIPES, {}, [variant, "--help"]) == 0
    shown = capfd.readouterr().out
    assert "--learning-rate" in shown
    assert NAME in shown


def test_all_and_chosen_variants_cannot_be_combined():
    with pytest.raises(RecipeError, match="--all and --variant cannot be combined"):
        parse_and_run("study", RECIPES, {}, ["--all", "--variant", "first"])
