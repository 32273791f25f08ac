"""Findings of the 1,000 NIH images in the dataset of Ozturk et al. 2020, in patient-grouped folds.

    python benchmarks/findings.py accuracy --data DIR --weights FILE
    python benchmarks/findings.py accuracy --data DIR --weights FILE --strategy lp_ft --seeds 0
    python benchmarks/findings.py hidden --data DIR --weights FILE --hide 0.3
    python benchmarks/findings.py seconds --data DIR --weights FILE

The folders No_findings and Pneumonia hold images of NIH ChestX-ray14 under their names. Their findings, patients, sex,
age and view are in the label table that the package torchxrayvision contains. Finished folds in --output are not
repeated.

accuracy: AUROC of the findings with at least 19 positives, except Pneumonia, which selected the images. Intervals are
those of the report of the first seed. hidden: the same with a share of all labels removed before the split, for one
random mask per seed, evaluated on all labels. seconds: fit and refit of the head on cached features, compared with the
single-label probe of the two folders, in alternation.
"""

import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from common import make_parser, time_alternately
from sklearn.metrics import roc_auc_score

from fastcxr.config.recipe import Recipe
from fastcxr.progress.base import Progress

TABLE = "Data_Entry_2017_v2020.csv.gz"
FOLDERS = ("No_findings", "Pneumonia")
COLUMNS = {"Finding Labels": "label", "Patient ID": "patient", "Patient Gender": "sex", "Patient Age": "age",
           "View Position": "view"}  # fmt: skip
MIN_POSITIVES = 19
SELECTED_BY = "Pneumonia"
N_FOLDS = 5


def read_cohort(data: str) -> pd.DataFrame:
    """Return path, folder, labels, patient, sex, age and view of each image."""
    spec = importlib.util.find_spec("torchxrayvision")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("Install torchxrayvision, which contains the label table")
    table = pd.read_csv(Path(spec.submodule_search_locations[0]) / "data" / TABLE)
    table = table.set_index(table["Image Index"].str.removesuffix(".png"))[list(COLUMNS)].rename(columns=COLUMNS)
    paths = sorted(path for folder in FOLDERS for path in (Path(data).resolve() / folder).iterdir())
    rows = table.loc[[path.stem for path in paths]].reset_index(drop=True)
    return rows.assign(path=[str(path) for path in paths], folder=[path.parent.name for path in paths])


def compute_labels(cohort: pd.DataFrame) -> pd.DataFrame:
    """Return a column of 0 and 1 per finding."""
    return cohort["label"].str.get_dummies("|").drop(columns="No Finding")


def write_cohort(cohort: pd.DataFrame, file: Path, hide: float = 0.0, seed: int = 0) -> Path:
    """Write the table of the images; a share `hide` of the labels is blank, chosen by the seed."""
    table = cohort.drop(columns="folder")
    if hide:
        labels = compute_labels(cohort).astype(float)
        labels = labels.mask(np.random.default_rng(seed).random(labels.shape) < hide).astype("Int64")
        table = pd.concat([table.drop(columns="label"), labels], axis=1)
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False)
    return file


def make_recipe(given, seed: int, **options) -> Recipe:
    """Return the recipe of the benchmark."""
    return Recipe(
        given.backbone, weights=given.weights, strategy=given.strategy, image_size=given.image_size, seed=seed,
        figures="none", **options,
    )  # fmt: skip


def cross_validate_table(table: Path, given, seed: int) -> Path:
    """Run all folds of a table beside it, and return the folder of the pooled run."""
    from fastcxr.workflows.cross_validate import cross_validate

    folder = table.with_name(f"{table.stem}-{given.strategy}-{given.image_size}-{seed}")
    separator = "|" if "label" in pd.read_csv(table, nrows=0) else None
    started = time.perf_counter()
    cross_validate(
        make_recipe(given, seed, data=str(table), label_separator=separator, folds=N_FOLDS), folder, Progress()
    )
    print(f"{folder.name}: {time.perf_counter() - started:.0f} s")
    return folder


def score_folder(folder: Path, labels: pd.DataFrame) -> dict[str, float]:
    """Return the out-of-fold AUROC of each finding, from the true labels of all images by path."""
    predictions = pd.read_csv(folder / "predictions.csv").set_index("path")
    truth = labels.loc[predictions.index]
    return {name: float(roc_auc_score(truth[name], predictions[f"prob_{name}"])) for name in labels}


def select_labels(cohort: pd.DataFrame) -> pd.DataFrame:
    """Return the labels of the evaluated findings, by the path that predictions.csv states."""
    labels = compute_labels(cohort)
    labels.index = [f"{Path(path).parent.name}/{Path(path).name}" for path in cohort["path"]]
    return labels.loc[:, labels.sum() >= MIN_POSITIVES].drop(columns=SELECTED_BY)


def read_fold_mean(folder: Path, names: list[str]) -> float:
    """Return the mean over the folds of the macro AUROC of the findings with both classes in the fold."""
    means = []
    for file in sorted(folder.glob("fold-*/predictions.csv")):
        table = pd.read_csv(file)
        table = table[table["split"] == "test"]
        scored = [name for name in names if 0 < table[f"truth_{name}"].sum() < len(table)]
        means.append(np.mean([roc_auc_score(table[f"truth_{name}"], table[f"prob_{name}"]) for name in scored]))
    return float(np.mean(means))


def measure_accuracy(given) -> None:
    """Print the AUROC of each finding, mean of the seeds, with the interval of the first seed."""
    cohort = read_cohort(given.data)
    table, labels = write_cohort(cohort, given.output / "cohort.csv"), select_labels(cohort)
    folders = [cross_validate_table(table, given, seed) for seed in given.seeds]
    scores = pd.DataFrame([score_folder(folder, labels) for folder in folders])
    intervals = json.loads((folders[0] / "metrics.json").read_text())["oof"]["intervals"]["of"]
    print(f"| finding | positives | AUROC, mean of seeds | 95 % interval, seed {given.seeds[0]} |\n|---|---|---|---|")
    for name in labels:
        low, high = intervals[f"auroc.per_class.{name}"]
        print(f"| {name} | {labels[name].sum()} | {scores[name].mean():.3f} | {low:.3f} to {high:.3f} |")
    macro = scores.mean(axis=1)
    print(f"| macro | | {macro.mean():.3f} | seeds: {', '.join(f'{value:.3f}' for value in macro)} |")
    fold_means = [read_fold_mean(folder, list(labels)) for folder in folders]
    print(f"mean of the folds: {np.mean(fold_means):.3f} ({', '.join(f'{value:.3f}' for value in fold_means)})")


def measure_hidden(given) -> None:
    """Print the cost of hidden labels in macro AUROC, one mask per seed."""
    cohort = read_cohort(given.data)
    full, labels = write_cohort(cohort, given.output / "cohort.csv"), select_labels(cohort)
    costs = []
    for seed in given.seeds:
        hidden = write_cohort(cohort, given.output / f"hidden-{given.hide:g}-{seed}.csv", given.hide, seed)
        values = []
        for table in (full, hidden):
            values.append(np.mean(list(score_folder(cross_validate_table(table, given, seed), labels).values())))
        costs.append(values[0] - values[1])
        print(f"seed {seed}: {values[0]:.3f} with all labels, {values[1]:.3f} with {given.hide:.0%} hidden")
    print(f"cost: {np.mean(costs):.3f} macro AUROC (mean of {len(costs)} masks)")


def measure_seconds(given) -> None:
    """Print the median seconds of a fitted and refitted head for both tasks on the same images."""
    cohort = read_cohort(given.data)
    table = write_cohort(cohort, given.output / "cohort.csv")
    classes = given.output / "classes.csv"
    cohort.assign(label=cohort["folder"]).drop(columns="folder").to_csv(classes, index=False)
    calls = {name: make_fit(data, given, sep) for name, data, sep in (("two classes", classes, None),
                                                                    ("14 findings", table, "|"))}  # fmt: skip
    seconds = time_alternately(calls, runs=5)
    cpu_seconds = time_alternately(calls, runs=5, clock=time.process_time)
    for name in calls:
        print(f"{name}: {seconds[name]:.2f} s, {cpu_seconds[name]:.2f} processor seconds")
    ratios = [values["14 findings"] / values["two classes"] for values in (seconds, cpu_seconds)]
    print(f"ratio: {ratios[0]:.2f}, of processor seconds {ratios[1]:.2f}")


def make_fit(table: Path, given, separator: str | None):
    """Return a function that fits and refits the head on cached features, and compute these first."""
    from fastcxr.data.manifest import read_manifest
    from fastcxr.data.splits import split_by_patient
    from fastcxr.training.learner import make_learner
    from fastcxr.training.linear_probe import fit_head, refit_head
    from fastcxr.training.loaders import make_loaders

    recipe = make_recipe(given, 0)
    manifest = split_by_patient(read_manifest(str(table), label_separator=separator), seed=0)
    learner = make_learner(make_loaders(manifest, recipe), recipe)

    def fit() -> None:
        fit_head(learner, recipe, Progress())
        refit_head(learner)

    fit()
    return fit


PARTS = {"accuracy": measure_accuracy, "hidden": measure_hidden, "seconds": measure_seconds}


def main() -> None:
    """Run one part of the benchmark."""
    parser = make_parser(__doc__, required=("data", "weights"), optional=("backbone",))
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--output", type=Path, default=Path("findings-benchmark"), help="folder of the runs")
    parser.add_argument("--strategy", default="linear_probe")
    parser.add_argument("--image-size", type=int, default=288)
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2, for hidden 0 1 2 3 4")
    parser.add_argument("--hide", type=float, default=0.3, help="share of hidden labels of the part hidden")
    given = parser.parse_args()
    given.output = given.output.resolve()
    given.seeds = given.seeds or list(range(5 if given.part == "hidden" else 3))
    PARTS[given.part](given)


if __name__ == "__main__":
    main()
