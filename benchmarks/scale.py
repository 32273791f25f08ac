"""Seconds and peak memory of each step from reading half a million rows to their report, for growing datasets.

    python benchmarks/scale.py FOLDER [--rows 1000 10000 100000 0] [--dataset nih chexpert padchest] [--step read]

FOLDER gets the datasets of public_layouts.py at full size, in all/, which are kept (--rows 0); ROWS-rows/ have the
first rows of each of their tables, in proportion, with hard links to the same files.

read, split: read_manifest and split_by_patient of the merged datasets. tables: manifest.csv written and read.
checks: the checks of the manifest, with checksums of files of equal size. features: every image decoded for the audit.
near: near-duplicates of these images. probes: the shortcut probes. describe: `fastcxr describe`, with all of its steps.
findings: calibration, thresholds, metrics and intervals of ROWS x 14 predictions, 90 % of them test, made-up labels of
which 8 % are unknown, 1 to 12 images per patient. files: their predictions.csv written and read. report: their
report.html. classes, class_report: the same for one of three labels per image.

Each step is measured in a separate process. "processor" are the seconds of that process on all processors, with its
start, which depend less on other programs than the seconds of the step do. Memory: the highest resident memory of the
process (VmHWM) until the end of the step, with the libraries and the input of the step, which an earlier one has
written.
"""

import argparse
import json
import os
import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import get_processor_seconds, make_parser, parse_or_measure, run_in_subprocess
from public_layouts import N_ROWS, PADCHEST_TABLE, WRITERS

FINDINGS = {
    "Atelectasis": 0.15, "Cardiomegaly": 0.12, "Consolidation": 0.06, "Edema": 0.2, "Enlarged Cardiomediastinum": 0.05,
    "Fracture": 0.04, "Lung Lesion": 0.04, "Lung Opacity": 0.4, "No Abnormality": 0.1, "Pleural Effusion": 0.35,
    "Pleural Other": 0.015, "Pneumonia": 0.03, "Pneumothorax": 0.09, "Support Devices": 0.5,
}  # fmt: skip
COMMON_NAMES = (  # findings that PadChest writes in lower case
    "Atelectasis", "Cardiomegaly", "Consolidation", "Emphysema", "Fracture", "Mass", "Nodule", "Pleural Effusion",
    "Pneumonia", "Pneumothorax",
)  # fmt: skip
CLASSES = {"normal": 0.6, "bacterial pneumonia": 0.3, "viral pneumonia": 0.1}
UNKNOWN_SHARE, SEPARATION = 0.08, 1.4
MODEL = {"kind": "single_label", "backbone": {"name": "resnet18", "library": "timm"}, "image_size": 64}


def load(path: Path) -> Any:
    """Return an object that an earlier step has written."""
    return pd.read_pickle(path)  # noqa: S301  written by this script


def find_datasets(folder: Path, names: list[str]) -> list[str]:
    """Return the folders of the datasets."""
    return [str(folder / name) for name in names]


def find_renamed(folder: Path, names: list[str]) -> tuple[str, ...]:
    """Return the option `relabel` of these datasets: one name for each finding."""
    renamed = ["Effusion=Pleural Effusion"] if {"nih", "chexpert"} <= set(names) else []
    if "padchest" in names and len(names) > 1:
        lists = pd.read_csv(folder / "padchest" / PADCHEST_TABLE, usecols=["Labels"], dtype=str)["Labels"]
        present = set(re.findall(r"'\s*([^']*?)\s*'", lists.str.cat()))
        renamed += [f"{name.lower()}={name}" for name in COMMON_NAMES if name.lower() in present]
    return tuple(renamed)


def measure_read(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Read the datasets into a manifest."""
    from fastcxr import read_manifest

    relabel = find_renamed(folder, given.dataset)
    started = time.perf_counter()
    manifest = read_manifest(find_datasets(folder, given.dataset), relabel=relabel)
    seconds = time.perf_counter() - started
    peak = read_peak()
    manifest.to_pickle(folder / "manifest.pkl")
    counts = {"images": len(manifest), "patients": manifest["patient"].nunique(), "columns": manifest.shape[1]}
    return {"seconds": seconds, "peak": peak, **counts}


def measure_split(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Split the manifest by patient."""
    from fastcxr import split_by_patient

    manifest = load(folder / "manifest.pkl")
    started = time.perf_counter()
    manifest = split_by_patient(manifest, ignore_given_splits=True)
    seconds = time.perf_counter() - started
    peak = read_peak()
    manifest.to_pickle(folder / "split.pkl")
    return {"seconds": seconds, "peak": peak}


def measure_tables(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Write and read manifest.csv."""
    from fastcxr.data.manifest_file import read_written_manifest, write_manifest

    manifest = load(folder / "split.pkl")
    started = time.perf_counter()
    write_manifest(manifest, folder / "manifest.csv")
    written = time.perf_counter()
    del manifest
    read_written_manifest(folder / "manifest.csv")
    size = (folder / "manifest.csv").stat().st_size / 1e6
    return {"seconds": time.perf_counter() - started, "write": written - started, "MB": size}


def measure_checks(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Check the manifest."""
    from fastcxr.audit.manifest_checks import check_manifest

    manifest = load(folder / "split.pkl")
    started = time.perf_counter()
    check_manifest(manifest)
    return {"seconds": time.perf_counter() - started}


def measure_features(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Decode every image for the audit."""
    from fastcxr.audit.image_features import extract_features
    from fastcxr.progress.base import Progress

    manifest = load(folder / "split.pkl")
    started = time.perf_counter()
    features = extract_features(manifest["file"].tolist(), Progress())
    seconds, peak = time.perf_counter() - started, read_peak()
    (folder / "features.pkl").write_bytes(pickle.dumps(features, protocol=5))
    return {"seconds": seconds, "peak": peak}


def measure_near(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Search for near-duplicates."""
    from fastcxr.audit.near_duplicates import check_near_duplicates

    manifest, features = (load(folder / name) for name in ("split.pkl", "features.pkl"))
    started = time.perf_counter()
    finding = check_near_duplicates(manifest, features)
    return {"seconds": time.perf_counter() - started, "pairs": finding.value or 0}


def measure_probes(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Fit the shortcut probes."""
    from fastcxr.progress.base import Progress
    from fastcxr.workflows.audit import run_probes

    manifest, features = (load(folder / name) for name in ("split.pkl", "features.pkl"))
    started = time.perf_counter()
    run_probes(manifest, features, 0, Progress())
    return {"seconds": time.perf_counter() - started}


def measure_describe(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Describe the datasets on a page."""
    import shutil

    from fastcxr import Recipe
    from fastcxr.progress.base import Progress
    from fastcxr.workflows.describe import describe

    shutil.rmtree(folder / "describe", ignore_errors=True)
    started = time.perf_counter()
    recipe = Recipe(data=tuple(find_datasets(folder, given.dataset)), relabel=find_renamed(folder, given.dataset))
    page = describe(recipe, folder / "describe", Progress())
    return {"seconds": time.perf_counter() - started, "page, MB": page.stat().st_size / 1e6}


def make_people(rows: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return a manifest of made-up patients with 1 to 12 images, half of them one."""
    patient = np.repeat(np.arange(rows), np.minimum(rng.geometric(0.35, rows), 12))[:rows]
    return pd.DataFrame(
        {
            "source": np.where(patient % 3 == 0, "first hospital", "second hospital"),
            "path": [f"{p // 1000}/patient{p:06d}/image{i:06d}.png" for i, p in enumerate(patient)],
            "patient": [f"patient{p:06d}" for p in patient],
            "patient_origin": "column",
            "split": np.where(rng.random(rows) < 0.1, "valid", "test")[patient],
            "split_origin": "given",
            "sex": rng.choice(["F", "M"], rows)[patient],
            "age": rng.integers(20, 90, rows)[patient].astype(str),
            "view": rng.choice(["PA", "AP", "lateral"], rows),
        }
    )


def make_finding_predictions(rows: int) -> tuple[pd.DataFrame, Any]:
    """Return the manifest and predictions of several findings per image."""
    from fastcxr.data.findings import FINDING_PREFIX, make_finding_labels
    from fastcxr.metrics.predictions import make_predictions

    rng, n_findings = np.random.default_rng(0), len(FINDINGS)
    present = rng.random((rows, n_findings)) < list(FINDINGS.values())
    logit = rng.normal(size=present.shape) - 1.5 + SEPARATION * present
    is_unknown = rng.random(present.shape) < UNKNOWN_SHARE
    columns = {
        FINDING_PREFIX + name: pd.arrays.IntegerArray(present[:, k].astype(np.int8), is_unknown[:, k].copy())
        for k, name in enumerate(FINDINGS)
    }
    table = pd.DataFrame(columns)
    manifest = make_people(rows, rng).assign(label=make_finding_labels(table)).join(table)
    return manifest, make_predictions(manifest, 1 / (1 + np.exp(-logit)), list(FINDINGS), findings=True)


def make_class_predictions(rows: int) -> tuple[pd.DataFrame, Any]:
    """Return the manifest and predictions of one label per image."""
    from fastcxr.metrics.predictions import make_predictions

    rng, k = np.random.default_rng(0), len(CLASSES)
    truth = rng.choice(k, rows, p=list(CLASSES.values()))
    logit = rng.normal(size=(rows, k)) + SEPARATION * np.eye(k)[truth]
    probability = np.exp(logit) / np.exp(logit).sum(axis=1, keepdims=True)
    manifest = make_people(rows, rng).assign(label=np.array(list(CLASSES), object)[truth])
    return manifest, make_predictions(manifest, probability, list(CLASSES))


def measure_findings(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Fit calibration and thresholds of findings and compute metrics with intervals."""
    return measure_metrics(folder / "findings-run", *make_finding_predictions(given.size), is_findings=True)


def measure_classes(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Fit calibration and thresholds of classes and compute metrics with intervals."""
    return measure_metrics(folder / "classes-run", *make_class_predictions(given.size), is_findings=False)


def measure_metrics(run: Path, manifest: pd.DataFrame, predictions: Any, *, is_findings: bool) -> dict[str, Any]:
    """Measure calibration, thresholds, metrics and intervals, and write the files of a run."""
    from fastcxr.data.manifest_file import write_manifest
    from fastcxr.io.formats import MODEL_FORMAT, RECIPE_FORMAT
    from fastcxr.metrics.evaluate import evaluate_predictions
    from fastcxr.metrics.finding_calibration import fit_finding_calibration
    from fastcxr.metrics.predictions import write_predictions
    from fastcxr.metrics.thresholds import fit_thresholds

    started = time.perf_counter()
    calibration: dict[str, Any] = {"temperature": 1.0}
    if is_findings:
        images = predictions.for_split("valid").scorable().to_arrays()
        calibration["findings"] = fit_finding_calibration(images, is_scaled=True)
    calibration |= fit_thresholds(predictions, 0.9, None, 0.1)
    fitted = time.perf_counter()
    evaluate_predictions(predictions, calibration)
    seconds, peak = time.perf_counter() - started, read_peak()
    run.mkdir(exist_ok=True)
    write_manifest(manifest, run / "manifest.csv")
    write_predictions(predictions, run / "predictions.csv")
    kind = {"kind": "multi_label"} if is_findings else {}
    model = MODEL | kind | {"format": MODEL_FORMAT, "labels": list(predictions.labels), "calibration": calibration}
    (run / "model.json").write_text(json.dumps(model))
    (run / "recipe.json").write_text(json.dumps({"format": RECIPE_FORMAT, "backbone": "resnet18", "data": "made-up"}))
    return {"seconds": seconds, "peak": peak, "fit": fitted - started}


def measure_files(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Read and write predictions.csv."""
    from fastcxr.metrics.predictions import read_predictions, write_predictions

    path = folder / "findings-run" / "predictions.csv"
    started = time.perf_counter()
    predictions = read_predictions(path)
    read = time.perf_counter()
    write_predictions(predictions, path)
    size = path.stat().st_size / 1e6
    return {"seconds": time.perf_counter() - started, "read": read - started, "MB": size}


def measure_finding_report(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Write the report of the findings."""
    return measure_report(folder / "findings-run")


def measure_class_report(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Write the report of the classes."""
    return measure_report(folder / "classes-run")


def measure_report(run: Path) -> dict[str, Any]:
    """Write metrics.json, figures and report.html from the files of a run, as `fastcxr report` does."""
    from fastcxr.report.run_page import write_run_report

    started = time.perf_counter()
    page = write_run_report(run)
    return {"seconds": time.perf_counter() - started, "page, MB": page.stat().st_size / 1e6}


STEPS: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "read": measure_read,
    "split": measure_split,
    "tables": measure_tables,
    "checks": measure_checks,
    "features": measure_features,
    "near": measure_near,
    "probes": measure_probes,
    "describe": measure_describe,
    "findings": measure_findings,
    "files": measure_files,
    "report": measure_finding_report,
    "classes": measure_classes,
    "class_report": measure_class_report,
}
PREDICTION_STEPS = {"findings", "files", "report", "classes", "class_report"}  # without the datasets


def read_peak() -> float:
    """Return the highest resident memory of this process so far [MB]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def name_folder(given: argparse.Namespace, rows: int) -> Path:
    """Return the folder of the datasets with this number of rows, 0 for all."""
    return given.folder / (f"{rows}-rows" if rows else "all")


def write_datasets(folder: Path, given: argparse.Namespace, rows: int) -> None:
    """Write the first rows of each dataset, in proportion, with hard links to the images of all/."""
    total = sum(N_ROWS[name] for name in given.dataset)
    for name in given.dataset:
        share = round(rows * N_ROWS[name] / total) if rows else None
        WRITERS[name](folder / name, share, given.processes, given.folder / "all" / name if rows else None)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return the values of one step."""
    os.environ["XDG_CACHE_HOME"] = str(given.work / "cache")
    values = STEPS[given.variant](given.work, given)
    return {"peak": read_peak(), "processor, s": get_processor_seconds()} | values


def main() -> None:
    """Write the datasets, then measure each step in a separate process."""
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder of the datasets, which are kept")
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000, 400_000])
    parser.add_argument("--dataset", nargs="+", choices=WRITERS, default=list(WRITERS))
    parser.add_argument("--step", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--processes", type=int, default=2, help="processes that draw images")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    given = parse_or_measure(parser, STEPS, measure)
    for rows in given.rows:
        folder = name_folder(given, rows)
        folder.mkdir(parents=True, exist_ok=True)
        if not PREDICTION_STEPS.issuperset(given.step):
            write_datasets(folder, given, rows)
        size = rows or sum(N_ROWS[name] for name in given.dataset)
        for step in given.step:
            values = run_in_subprocess(step, work=folder.resolve(), size=size)
            peak, seconds = values.pop("peak"), values.pop("seconds")
            further = ", ".join(f"{name} {value:,.4g}" for name, value in values.items())
            print(f"{size:>9,} {step:>12} {seconds:>8.1f} s {peak:>7,.0f} MB  {further}", flush=True)


if __name__ == "__main__":
    main()
