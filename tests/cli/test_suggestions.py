"""Unknown options are explained by their meaning, several values follow one option, and aliases are accepted."""

import pytest
from cli_calls import TRAIN

import fastcxr.inference.explain  # noqa: F401  imported before a test replaces make_image_table
from fastcxr.cli.app import app
from fastcxr.cli.suggestions import COMMAND_SYNONYMS, SYNONYMS, suggest_option
from fastcxr.cli.train import train
from fastcxr.config.recipe import Recipe

pytestmark = pytest.mark.usefixtures("without_figures", "few_draws")


def option_names(command: str) -> list[str]:
    return [name for argument in app[command].assemble_argument_collection() for name in argument.names]


@pytest.mark.parametrize(
    ("command", "option", "expected"),
    [
        ("train", "--gpu", "--device"),
        ("train", "--output", "--out"),
        ("train", "--model", "--backbone"),
        ("train", "--arch", "--backbone"),
        ("train", "--lr-rate", "--learning-rate"),
        ("train", "--dataset", "--data"),
        ("train", "--img_size", "--image-size"),
        ("train", "--pretrained", "--weights"),
        ("train", "--num-workers", "--workers"),
        ("predict", "--output", "--csv"),
        ("train", "--epoch", "--epochs"),
        ("train", "--lrr", "--lr"),
    ],
)
def test_an_option_of_other_programs_suggests_the_option_with_this_meaning(command, option, expected):
    assert suggest_option(option, option_names(command)) == f"Did you mean {expected}?"


def test_no_option_is_suggested_for_a_word_whose_option_the_command_lacks():
    names = ["--sampler", "--seed", "--data"]
    assert suggest_option("--lr", names) == "List the options with --help"
    assert suggest_option("--xyzzy", names) == "List the options with --help"


def test_every_synonym_belongs_to_an_option_of_a_command_and_is_no_option_itself():
    all_names = {name for command in app if not command.startswith("-") for name in option_names(command)}
    output_names = {"--quiet", "--verbose", "--log-file"}
    assert set(SYNONYMS) <= all_names | output_names
    assert set(COMMAND_SYNONYMS) <= set(app)
    assert not {word for words in COMMAND_SYNONYMS.values() for word in words} & set(app)


@pytest.fixture
def parsed(monkeypatch):
    """Return the recipe that a command line of train gives."""

    def parse(*words) -> Recipe:
        _, bound, _ = app.parse_args(["train", *words], exit_on_error=False, print_error=False)
        return Recipe(**vars(bound.arguments["options"]))

    assert train
    return parse


def test_an_option_takes_several_values_and_can_be_repeated(parsed):
    recipe = parsed("resnet18", "--data", "a", "b", "--classes", "x", "y", "--data", "c", "--head-hidden", "64", "32")
    assert (recipe.backbone, recipe.data, recipe.classes) == ("resnet18", ("a", "b", "c"), ("x", "y"))
    assert recipe.head_hidden == (64, 32)
    assert parsed("--data", "a").data == "a"


@pytest.mark.parametrize("name", [n for n, f in Recipe.__dataclass_fields__.items() if "tuple[str" in str(f.type)])
def test_every_list_option_takes_several_values(parsed, name):
    values = {"oversample": ("a=2", "b=3"), "prevalence": ("a=.1", "b=.2")}.get(name, ("a=b", "c=d"))
    assert getattr(parsed(f"--{name.replace('_', '-')}", *values), name) == values


def test_short_names_of_other_libraries_are_accepted(parsed):
    recipe = parsed("--lr", "0.01", "--bs", "8", "--size", "64")
    assert (recipe.learning_rate, recipe.batch_size, recipe.image_size) == (0.01, 8, 64)


@pytest.mark.parametrize(
    ("options", "code", "fix"),
    [
        (["resnet5O"], 64, "Did you mean 'resnet50'"),
        (["mobilenetv2_035", "--weights", "nowhere.pth"], 66, "Pass --weights"),
        (["mobilenetv2_035", "--weights", "damaged.safetensors"], 69, "Download it again"),
        (["resnet18", "--weights", "other.safetensors"], 69, "Pass the backbone that these weights were saved from"),
        (["mobilenetv2_035", "--weights", "none", "--device", "cuda:99"], 64, "--device auto"),
    ],
)
@pytest.mark.parametrize("command", ["train", "folds", "run", "scout"])
def test_backbone_weights_and_device_are_rejected_before_an_image_is_read(
    call, finished, tmp_path, monkeypatch, command, options, code, fix
):
    monkeypatch.setattr("fastcxr.workflows.load.open_dataset_images", fail)
    (tmp_path / "damaged.safetensors").write_bytes(b"no weights")
    (tmp_path / "other.safetensors").write_bytes((finished[0] / "model.safetensors").read_bytes())
    (tmp_path / "s.py").write_text("from fastcxr import Recipe\nRECIPES = {'a': Recipe()}")
    backbone, *rest = options
    words = {"folds": ["train", backbone, "--folds", "3"], "run": ["run", "s.py", "a", "--backbone", backbone]}
    if command == "scout" and "--weights" in rest:
        if "none" in rest:
            rest = rest[2:]
        elif code == 69:
            pytest.skip("a row with a note, not an error")
        else:
            rest[1] = f"{backbone}={rest[1]}"
    done = call(*words.get(command, [command, backbone]), *rest, "--data", finished[1], where=tmp_path)
    assert done.returncode == code, done.stderr
    assert fix in done.stderr
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.mark.parametrize("command", ["predict", "explain"])
@pytest.mark.parametrize(("run", "options", "code"), [("nowhere", [], 66), ("run", ["--device", "cuda:99"], 64)])
def test_the_model_is_loaded_before_the_images_are_listed(
    call, finished, tmp_path, monkeypatch, command, run, options, code
):
    monkeypatch.setattr("fastcxr.data.image_table.make_image_table", fail)
    folder = finished[0] if run == "run" else run
    assert call(command, folder, finished[1], *options, where=tmp_path).returncode == code


def test_evaluate_loads_the_model_before_it_reads_the_data(call, finished, tmp_path, monkeypatch):
    monkeypatch.setattr("fastcxr.workflows.load.read_manifest", fail)
    done = call("evaluate", finished[0], "--data", finished[1], "--device", "cuda:99", where=tmp_path)
    assert done.returncode == 64, done.stderr


def fail(*args, **kwargs):
    raise AssertionError("an image was read")


def test_files_that_are_no_images_are_skipped_and_counted_by_predict(call, finished, tmp_path):
    image = next((finished[1] / "haze").glob("*.png"))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "scan").write_bytes(image.read_bytes())
    (tmp_path / "new" / "README.txt").write_text("about")
    (tmp_path / "new" / "labels.csv").write_text("path,label")
    done = call("predict", finished[0], "new", where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "skipped 2 files that are not images by name and content in new: README.txt, labels.csv" in done.stderr
    assert [line.split(",")[1] for line in done.stdout.splitlines()[1:]] == ["scan"]
    assert re_count(done.stderr) == 1
    (tmp_path / "new" / "page.png").write_text("<html>404</html>")
    assert call("predict", finished[0], "new").returncode == 2, "it has the name of an image"
    assert call("predict", finished[0], "new/README.txt").returncode == 2, "it was named as an image"


def re_count(shown: str) -> int:
    """Return the number of images in the summary of predict, which has the singular for one image."""
    line = shown.splitlines()[-1]
    assert "1 images" not in line
    return sum(int(part.split()[0]) for part in line.split(", ") if "unreadable" not in part)


def test_train_help_starts_with_three_examples_that_are_valid(capsys):
    app.help_print(["train"])
    shown = capsys.readouterr().out
    examples = [line.strip() for line in shown.splitlines() if line.strip().startswith("fastcxr train ")]
    assert len(examples) == 3
    assert shown.index(examples[2]) < shown.index("Common options")
    for example in examples:
        words = example.split(" #")[0].split()[1:]
        app.parse_args(words, exit_on_error=False, print_error=False)
    assert TRAIN[0] == "train"
