"""Python packages that are not installed: a check before work starts, and one error that names all of them.

An exported model needs few packages: without torch, fastai and timm the other commands end with this error.
"""

from collections.abc import Iterable
from importlib.util import find_spec

from fastcxr.errors import PackageError
from fastcxr.io.formatting import join_names

DISTRIBUTION_BY_MODULE = {
    "PIL": "pillow",
    "huggingface_hub": "huggingface-hub",
    "python_multipart": "python-multipart",
    "sklearn": "scikit-learn",
}  # names for pip that differ from the name of the module
TORCH_MODULES = ("torch", "torchvision", "fastai", "timm", "safetensors")  # of training, and of the model of a run
EVALUATION_MODULES = ("sklearn", "scipy", "matplotlib", "jinja2", "filelock", "platformdirs")  # metrics and report
INSTALL_ALL_FIX = "Run `pip install fastcxr`, which installs all its dependencies"


def find_missing(modules: Iterable[str]) -> list[str]:
    """Return the names for pip of the modules that are not installed."""
    return [get_distribution(module) for module in modules if not _is_installed(module)]


def require_packages(modules: Iterable[str], user: str) -> None:
    """Raise PackageError if one of the modules is not installed. `user`: what needs them, such as `an evaluation`."""
    if missing := find_missing(modules):
        raise make_package_error(missing, user, f"Run `pip install {' '.join(missing)}`")


def make_package_error(missing: list[str], user: str, fix: str = INSTALL_ALL_FIX) -> PackageError:
    """Return the error for packages that are not installed, given by their names for pip."""
    verb = "is" if len(missing) == 1 else "are"
    return PackageError(f"{user} needs {join_names(missing)}, which {verb} not installed", fix, code="E203")


def make_command_package_error(module: str) -> PackageError:
    """Return the error of a command for which a module is not installed, with all other missing packages."""
    return make_package_error(
        find_missing(dict.fromkeys((*TORCH_MODULES, *EVALUATION_MODULES, module.partition(".")[0]))), "this command"
    )


def get_distribution(module: str) -> str:
    """Return the name for pip of the package with a module."""
    name = module.partition(".")[0]
    return DISTRIBUTION_BY_MODULE.get(name, name)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # ValueError: a module without a specification
        return False
