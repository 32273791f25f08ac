"""Import rules, read from the source: which package may import which, and when heavy libraries are loaded."""

import ast
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fastcxr"
FILES = sorted(PACKAGE.rglob("*.py"))
# from bottom to top: a package imports only from earlier rows
LAYERS = (
    {"errors", "version"},
    {"io"},
    {"config", "progress"},
    {"executors"},
    {"data"},
    {"audit", "metrics"},
    {"models", "report"},
    {"training"},
    {"inference"},
    {"export", "serve"},
    {"tracking"},
    {"workflows"},
    {"cli"},
    {"__main__", ""},  # the entry point, and the lazy imports of the package
)
TORCH = {"torch", "torchvision", "fastai", "fastcore", "fasttransform", "timm"}
WITHOUT_TORCH = ("errors", "io", "config", "progress", "executors", "data", "audit", "metrics", "report")
MAX_LINES, MIN_LINES = 400, 40
# modules below MIN_LINES, each with its reason
SHORT = {
    "version": "read by the build",
    "cli.option_names": "one conversion of messages, used by the output of all commands",
    "__main__": "entry point of python -m fastcxr",
    "config.recipe_paths": "the two uses of paths that are not part of reading a recipe",
    "cli.main": "entry point of the command, which registers the commands",
    "progress.auto": "the choice between the displays, which are separate modules",
    "metrics.scoring_rules": "shared by calibration and bootstrap, and loads no scikit-learn",
    "models.preprocessing": "shared by inference and training",
    "models.ood": "the fitted detector, without the code that fits it, which needs the feature cache",
    "models.baseline_cnn": "one network",
    "audit.findings": "the result type of all checks",
    "io.threads": "reading ahead, used by the image cache, training and inference",
    "metrics.display": "notebook display of predictions, without the metrics",
    "report.saliency_page": "one page, separate from the dataset pages, which load no scikit-learn",
    "io.paths": "one check of named paths, shared by the readers of datasets and of images",
    "io.html": "escaping and tables for notebook displays of several packages",
}


def name_of(file: Path) -> str:
    """Return the dotted name of a module in the package; empty for the package itself."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in FILES}


@functools.cache  # every module is examined by several tests
def parse_file(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@functools.cache
def imports_of(file: Path) -> set[str]:
    """Return all modules that a file imports, also inside functions and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(parse_file(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {name for name in submodules if name.removeprefix("fastcxr.") in MODULES}
            found |= known or {node.module}
    return found


def own_imports(name: str) -> set[str]:
    """Return the modules of this package that one of its modules imports."""
    own = {found.removeprefix("fastcxr").lstrip(".") for found in imports_of(MODULES[name]) if is_own(found)}
    return own - {name}


def is_own(module: str) -> bool:
    return module.split(".")[0] == "fastcxr"


def layer_of(name: str) -> int:
    return next(level for level, units in enumerate(LAYERS) if name.split(".")[0] in units)


def test_modules_import_only_from_their_own_package_and_from_layers_below():
    # one test for all modules, as in the other rules: a test per module takes longer than its check
    higher = {
        (name, other)
        for name in set(MODULES) - {"", "__main__"}
        for other in own_imports(name)
        if other.split(".")[0] != name.split(".")[0] and layer_of(other) >= layer_of(name)
    }
    assert not higher


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return one import cycle of the graph, with its first module repeated at the end; empty if there is none."""
    done, path = set(), []

    def visit(node: str) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        path.append(node)
        for other in sorted(graph.get(node, ())):
            if cycle := visit(other):
                return cycle
        done.add(path.pop())
        return []

    return next((cycle for node in sorted(graph) if (cycle := visit(node))), [])


def test_there_is_no_import_cycle():
    assert find_cycle({name: own_imports(name) for name in MODULES if name}) == []


def test_find_cycle_finds_a_cycle_and_nothing_else():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_imports_inside_functions_and_under_type_checking_are_found(tmp_path):
    text = "if TYPE_CHECKING:\n    from fastcxr.data import splits\ndef late():\n    import fastcxr.io.files\n"
    (tmp_path / "a.py").write_text(text)
    assert imports_of(tmp_path / "a.py") == {"fastcxr.data.splits", "fastcxr.io.files"}


def test_the_top_level_has_only_these_files():
    assert {file.name for file in PACKAGE.iterdir() if file.is_file()} == {
        "__init__.py", "__main__.py", "errors.py", "version.py", "py.typed",
    }  # fmt: skip


def test_modules_have_40_to_400_lines():
    files = {name: file for name, file in MODULES.items() if file.name != "__init__.py"}
    lines = {name: file.read_text(encoding="utf-8").count("\n") for name, file in files.items()}
    assert not {name: n for name, n in lines.items() if n > MAX_LINES}
    assert not {name: n for name, n in lines.items() if n < MIN_LINES and name not in SHORT}


def list_imported_packages(name: str) -> set[str]:
    return {module.split(".")[0] for module in imports_of(MODULES[name])}


def test_packages_without_torch_do_not_import_it():
    names = [name for name in MODULES if name.split(".")[0] in WITHOUT_TORCH]
    assert not [name for name in names if list_imported_packages(name) & TORCH]


def test_metrics_never_import_matplotlib():
    names = [name for name in MODULES if name.startswith("metrics")]
    assert not [name for name in names if "matplotlib" in list_imported_packages(name)]


def test_only_the_command_line_prints_and_exits():
    found = [
        (name, node.func.id, node.lineno)
        for name in MODULES
        if name.split(".")[0] not in ("cli", "__main__")
        for node in ast.walk(parse_file(MODULES[name]))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "exit")
    ]
    assert not found


@pytest.mark.parametrize("words", ["import fastcxr", "import fastcxr.cli.main", "from fastcxr import Recipe; Recipe()"])
def test_torch_is_loaded_on_first_use(words):
    code = f"{words}; import sys; sys.exit(bool({TORCH!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


HEAVY_LIBRARIES = TORCH | {
    "numpy",
    "pandas",
    "scipy",
    "sklearn",
    "matplotlib",
    "PIL",
    "jinja2",
    "pydicom",
    "huggingface_hub",
    "mlflow",
    "wandb",
    "tensorboard",
}


def test_encoders_are_listed_without_loading_torch():
    code = f"""import sys
from fastcxr.cli.main import main
sys.argv[1:] = ["models", "--chest"]
try:
    main()
finally:
    print(*({TORCH!r} & set(sys.modules)), file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "rad-dino" in done.stdout
    assert not done.stderr.strip()


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["evaluate", "--help"], ["--version"]])
def test_help_is_shown_without_loading_numerical_or_image_libraries(words):
    code = f"""import sys
from fastcxr.cli.main import main
sys.argv[1:] = {words}
try:
    main()
finally:
    print(*({HEAVY_LIBRARIES!r} & set(sys.modules)), file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout
    assert not done.stderr.strip()


@pytest.mark.parametrize(
    ("words", "given", "expected"),
    [
        ("import fastcxr", None, "PASSIVE"),
        ("import fastcxr.cli.main", None, "PASSIVE"),
        ("import fastcxr", "ACTIVE", "ACTIVE"),
        ("import sys; sys.modules['torch'] = sys; import fastcxr", None, None),
    ],
)
def test_waiting_threads_sleep_unless_the_variable_is_set_or_torch_is_loaded(words, given, expected):
    own = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    code = f"{words}; import os; print(os.environ.get('OMP_WAIT_POLICY'))"
    variables = own | ({"OMP_WAIT_POLICY": given} if given else {})
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(expected)


@pytest.mark.parametrize("module", ["report.run_page", "workflows.describe"])
def test_a_page_is_written_without_torch(module):
    code = f"import fastcxr.{module}, sys; sys.exit(bool({TORCH!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
