"""Run the command line in a process that can import some packages only, as in a small environment.

`python only_these.py PACKAGE,PACKAGE WORDS...`: the packages and all that they require can be imported, and no other
installed package.
"""

import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution

PREDICT_PACKAGES = ("onnxruntime", "numpy", "pandas", "pillow", "pydicom", "cyclopts", "rich")
EVALUATE_PACKAGES = (*PREDICT_PACKAGES, "scikit-learn", "scipy", "matplotlib", "jinja2", "filelock", "platformdirs")


def find_required(packages: Iterable[str]) -> dict[str, Distribution]:
    """Return the packages and all that they require on this platform without extras, by name."""
    from packaging.requirements import Requirement

    found, waiting = {}, list(packages)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # an optional accelerator that is not installed
            continue
        requirements = map(Requirement, found[name].requires or ())
        waiting += [one.name for one in requirements if not one.marker or one.marker.evaluate({"extra": ""})]
    return found


def list_modules(package: Distribution) -> set[str]:
    """Return the names of the modules and folders at the top of a package."""
    return {file.parts[0].partition(".")[0] for file in package.files or () if file.parts[0] != ".."}


class Blocker:
    """An import hook for which only these packages, fastcxr and the standard library are installed."""

    def __init__(self, packages: Iterable[str]):
        self.allowed = {"fastcxr", *sys.stdlib_module_names}.union(*map(list_modules, find_required(packages).values()))

    def is_blocked(self, name: str) -> bool:
        module = name.partition(".")[0]
        return module not in self.allowed and not module.startswith("_sysconfigdata")  # of the standard library

    def find_spec(self, name, path=None, target=None):
        if self.is_blocked(name):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


if __name__ == "__main__":
    blocker = Blocker(sys.argv[1].split(","))
    for name in filter(blocker.is_blocked, list(sys.modules)):
        if name != "__main__":
            del sys.modules[name]
    sys.meta_path.insert(0, blocker)
    sys.argv[:2] = ["fastcxr"]
    from fastcxr.cli.main import main

    main()
