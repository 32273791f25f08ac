"""Requirements of tests (real data, a GPU, optional packages), and the number of tests skipped without them."""

import importlib.util
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

REAL = {"real_data": "FASTCXR_REAL_DATA", "real_weights": "FASTCXR_REAL_WEIGHTS"}  # fixture to variable
NOT_SET = "{} is not set: it is the path of real radiographs or weights, which are not part of the project"
INSTALLED_AS = {"umap": "umap-learn"}  # package index name of a package, if it differs
MISSING = re.compile(r"optional (?:package|program) (\S+) is not installed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test that uses real data or weights."""
    for item in items:
        if set(REAL) & set(getattr(item, "fixturenames", ())):
            item.add_marker("real_data")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test if its packages, programs or GPU are missing, with the reason."""
    for mark in item.iter_markers("needs"):
        require(*mark.args, **mark.kwargs)
    if item.get_closest_marker("gpu"):
        import torch  # only here: most tests do not need it

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


def require(*packages: str, program: str | None = None) -> None:
    """Skip the test if one of these packages, or the program, is not installed."""
    for name in packages:
        if not importlib.util.find_spec(name):
            pytest.skip(f"optional package {name} is not installed: pip install {INSTALLED_AS.get(name, name)}")
    if program and not shutil.which(program):
        pytest.skip(f"optional program {program} is not installed")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real datasets."""
    return require_real("real_data")


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """ImageNet weights file of mobilenetv2_100."""
    return require_real("real_weights")


def require_real(fixture: str) -> Path:
    """Return the path in the environment variable of a fixture, or skip the test with the reason."""
    variable = REAL[fixture]
    return Path(os.environ.get(variable) or pytest.skip(NOT_SET.format(variable)))


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable(report: pytest.TestReport):
    """Escape lone surrogates, as in file names that are not UTF-8: in a failure message they crash xdist."""
    return escape_surrogates((yield))


def escape_surrogates(value):
    """Return the value with all text escaped to valid UTF-8, also in lists, tuples and dicts."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {escape_surrogates(key): escape_surrogates(item) for key, item in value.items()}
    return type(value)(map(escape_surrogates, value)) if type(value) in (list, tuple) else value


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session):
    """Print the number of tests skipped for missing packages after the summary of pytest."""
    result = yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and not session.config.option.collectonly:  # workers of xdist have none
        skipped = [str(report.longrepr) for report in reporter.stats.get("skipped", [])]
        reporter.write_line(count_missing(skipped))
    return result


def count_missing(reasons: list[str]) -> str:
    """Return the last line of a test run. `reasons`: of all skipped tests."""
    names = Counter(found[1] for reason in reasons if (found := MISSING.search(reason)))
    listed = ", ".join(f"{name} ({number})" for name, number in sorted(names.items()))
    return f"{names.total()} skipped for missing optional programs" + (f": {listed}" if listed else "")
