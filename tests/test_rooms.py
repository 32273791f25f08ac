"""The house plan: what may import what, read from the source itself."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent / "fastcxr"
HEAVY = {"torch", "torchvision", "fastai", "fastcore", "fasttransform", "timm"}
# may be imported by anyone
LEAVES = {
    "agreement", "cells", "choices", "cpus", "errors", "lock", "markup", "optional", "privacy", "progress", "recipe",
    "stopping", "storage", "traits", "version",
}  # fmt: skip
MAY_IMPORT = {
    "data": LEAVES,
    "evaluation": LEAVES,
    "training": LEAVES | {"data"},
    "inference": LEAVES | {"data", "training", "evaluation"},  # of evaluation only two doors, see below
    "folder": LEAVES | {"data"},
    "cohort": LEAVES | {"data", "folder"},
    "checks": LEAVES | {"data"},
    "audit": LEAVES | {"data", "checks", "evaluation", "folder", "cohort"},
    "describe": LEAVES | {"data", "evaluation", "folder", "cohort"},
    "compare": LEAVES | {"evaluation", "folder"},
    "verify": LEAVES | {"evaluation"},
    "unfinished": LEAVES | {"folder"},
    "maps": LEAVES | {"data", "inference", "evaluation", "folder"},
    "run_folder": LEAVES | {"audit", "unfinished", "data", "training", "inference", "evaluation", "folder", "maps"},
    "finished": LEAVES | {"data", "cohort", "unfinished"},
    "run": LEAVES
    | {"audit", "checks", "data", "training", "inference", "evaluation", "cohort", "run_folder", "finished"},
    "scout": LEAVES | {"data", "training", "evaluation", "cohort", "folder"},
    "evaluate": LEAVES | {"data", "inference", "evaluation", "cohort", "run_folder", "unfinished"},
    "cross_validation": LEAVES
    | {"audit", "checks", "data", "training", "evaluation", "cohort", "folder", "run_folder", "run", "finished"},
}
FILES = sorted(HOUSE.rglob("*.py"))


def imports_of(file: Path) -> set[str]:
    """Every module that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(node.module)
    return found


def room_of(file: Path) -> str:
    return file.relative_to(HOUSE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HOUSE)))
def test_a_room_imports_only_what_lies_below_it(file):
    room = room_of(file)
    if room not in MAY_IMPORT:
        return  # the command line and what a person sees stand above all rooms
    own = {name.split(".")[1] for name in imports_of(file) if name.startswith("fastcxr.")}
    assert own - {room} <= MAY_IMPORT[room]


WITHOUT_TORCH = (
    "data", "evaluation", "checks", "audit", "folder", "cohort", "describe", "compare", "verify", "finished",
)  # fmt: skip


@pytest.mark.parametrize("room", [*WITHOUT_TORCH, *sorted(LEAVES)])
def test_these_rooms_never_import_torch(room):
    for file in FILES:
        if room_of(file) == room:
            assert not {name.split(".")[0] for name in imports_of(file)} & HEAVY, file


def test_inference_takes_nothing_from_evaluation_but_predictions_and_what_model_json_says_of_them():
    for file in FILES:
        if room_of(file) == "inference":
            names = {name for name in imports_of(file) if name.startswith("fastcxr.evaluation")}
            assert names <= {"fastcxr.evaluation.predictions", "fastcxr.evaluation.calibration"}, file


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HOUSE)))
def test_only_the_command_line_prints(file):
    if room_of(file) in ("cli", "commands", "__main__"):
        return
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in ("print", "exit")]


@pytest.mark.parametrize("words", ["import fastcxr", "import fastcxr.cli", "from fastcxr import Recipe; Recipe()"])
def test_torch_is_not_loaded_before_it_is_used(words):
    code = f"{words}; import sys; sys.exit(bool({HEAVY!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


NUMBERS = HEAVY | {"numpy", "pandas", "scipy", "sklearn", "matplotlib", "PIL", "jinja2", "pydicom", "huggingface_hub"}


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["evaluate", "--help"], ["--version"]])
def test_help_is_shown_without_any_library_of_numbers_or_images(words):
    code = f"""import sys
from fastcxr.cli import main
sys.argv[1:] = {words}
try:
    main()
finally:
    print(*({NUMBERS!r} & set(sys.modules)), file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout
    assert not done.stderr.strip()


@pytest.mark.parametrize(
    ("words", "given", "expected"),
    [
        ("import fastcxr", None, "PASSIVE"),
        ("import fastcxr.cli", None, "PASSIVE"),
        ("import fastcxr", "ACTIVE", "ACTIVE"),
        ("import sys; sys.modules['torch'] = sys; import fastcxr", None, None),
    ],
)
def test_threads_sleep_while_they_wait_unless_somebody_chose_or_torch_is_there(words, given, expected):
    own = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    code = f"{words}; import os; print(os.environ.get('OMP_WAIT_POLICY'))"
    variables = own | ({"OMP_WAIT_POLICY": given} if given else {})
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(expected)


@pytest.mark.parametrize("module", ["evaluation.report", "describe"])
def test_a_page_is_drawn_without_torch(module):
    code = f"import fastcxr.{module}, sys; sys.exit(bool({HEAVY!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
