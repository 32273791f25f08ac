"""What tells the classes apart without looking at the lungs: small models on files, edges and gray values alone."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastcxr.checks.findings import Finding
from fastcxr.checks.looks import SIDE, Looks
from fastcxr.progress import Progress

FOLDS, SHUFFLES, SEED = 5, 20, 0
FEWEST = 10  # images of a class, below which no probe is fitted
PARTS = 40  # principal components of pixels
RING, CORNER, CENTRE = 0.05, 0.12, 0.75  # widths of edge and corners, side of the blacked-out centre, as shares


def check_probes(manifest: pd.DataFrame, looks: Looks, progress: Progress) -> list[Finding]:
    """Files, edge, corners, blacked-out centre and gray values, each beside the whole picture and shuffled labels."""
    labels, patients = manifest["label"].to_numpy(), manifest["patient"].to_numpy()
    few = manifest["label"].value_counts()
    if few.min() < FEWEST or manifest["patient"].nunique() < 2 * FOLDS or len(few) < 2:
        words = f"A class has fewer than {FEWEST} images: nothing can be probed."
        return [Finding(check="probes", title="Shortcuts", verdict="WARN", words=words)]
    pictures = looks.small.astype(np.float32) / 255
    with progress.bar(6, "probing for shortcuts") as bar:

        def probe(features: np.ndarray) -> float:
            bar.advance()
            return score_pixels(features, labels, patients)

        whole = probe(pictures)
        found = [_check_files(looks, labels, patients)]
        bar.advance()
        found.append(_judge("edge", "The edge of the image", probe(take_ring(pictures)), whole))
        found.append(_judge("corners", "The four corners", probe(take_corners(pictures)), whole))
        found.append(_judge_blackened(probe(black_centre(pictures)), whole))
        found.append(_judge("gray", "How bright the image is", probe(looks.histogram), whole))
    shuffled = score_pixels(pictures, np.random.default_rng(SEED).permutation(labels), patients)
    return [*found, _check_itself(shuffled)]


def take_ring(pictures: np.ndarray) -> np.ndarray:
    """The edge alone, (n, values)."""
    width = round(RING * SIDE)
    inside = np.zeros((SIDE, SIDE), bool)
    inside[width:-width, width:-width] = True
    return pictures[:, ~inside]


def take_corners(pictures: np.ndarray) -> np.ndarray:
    """The four corners alone, (n, values)."""
    width = round(CORNER * SIDE)
    near = np.r_[:width, SIDE - width : SIDE]
    return pictures[:, near][:, :, near].reshape(len(pictures), -1)


def black_centre(pictures: np.ndarray) -> np.ndarray:
    """Everything but the centre, where lungs and heart are (Maguolo and Nanni 2021), (n, values)."""
    edge = round((1 - CENTRE) / 2 * SIDE)
    dark = pictures.copy()
    dark[:, edge:-edge, edge:-edge] = 0
    return dark


def score_pixels(features: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> float:
    """Macro AUROC of a logistic regression on principal components, on patients it has not seen."""
    flat = features.reshape(len(features), -1)
    parts = min(PARTS, flat.shape[1], len(flat) // 2)
    parts = PCA(parts, svd_solver="randomized", random_state=SEED).fit_transform(flat)  # no label is looked at
    return score(
        lambda: make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)), parts, labels, patients
    )


def score(make: Callable, features: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> float:
    """Macro one-vs-rest AUROC of a model over patient-grouped folds, pooled."""
    return float(np.mean(list(score_classes(make, features, labels, patients).values())))


def score_classes(make: Callable, features: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> dict[str, float]:
    """The AUROC of each class against the rest."""
    names = np.unique(labels)
    guesses = np.zeros((len(labels), len(names)))
    for train, test in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=SEED).split(features, labels, patients):
        model = make().fit(features[train], labels[train])
        guesses[np.ix_(test, np.searchsorted(names, model.classes_))] = model.predict_proba(features[test])
    return {name: float(roc_auc_score(labels == name, guesses[:, k])) for k, name in enumerate(names)}


def _check_files(looks: Looks, labels: np.ndarray, patients: np.ndarray) -> Finding:
    facts = looks.facts
    density = facts["bytes"] / (facts["width"] * facts["height"])
    table = facts[["width", "height", "bytes"]].assign(aspect=facts["width"] / facts["height"], density=density)
    table = pd.concat([table, pd.get_dummies(facts[["kind", "mode"]])], axis=1).to_numpy(float)

    def forest() -> RandomForestClassifier:
        return RandomForestClassifier(40, min_samples_leaf=3, random_state=SEED)

    def best(classes: np.ndarray) -> tuple[float, str]:
        return max((value, name) for name, value in score_classes(forest, table, classes, patients).items())

    (figure, told), rng = best(labels), np.random.default_rng(SEED)
    null = float(np.quantile([best(rng.permutation(labels))[0] for _ in range(SHUFFLES)], 0.95))
    verdict = "FAIL" if figure >= 0.9 else "WARN" if figure >= 0.8 or figure > null else "PASS"
    apart = [f"{name}: {common}" for name in ("kind", "mode") if (common := _one_each(facts[name], labels))]
    words = f"Size, kind, colour mode and bytes of a file tell {told} from the rest with an AUROC of {figure:.3f}."
    remedy = "Bring all classes into one form from their originals, or collect them in one way."
    return Finding(
        check="files", title="Files against class", verdict=verdict, words=" ".join([words, *apart]),
        remedy="" if verdict == "PASS" else remedy, figure=figure, null=null,
    )  # fmt: skip


def _one_each(column: pd.Series, labels: np.ndarray) -> str:
    """The commonest value of each class, where classes differ in it."""
    common = {label: column[labels == label].mode().iloc[0] for label in np.unique(labels)}
    return ", ".join(f"{label} {value}" for label, value in common.items()) if len(set(common.values())) > 1 else ""


def _judge(check: str, title: str, figure: float, whole: float) -> Finding:
    verdict = "FAIL" if figure >= 0.85 else "WARN" if figure >= 0.70 else "PASS"
    words = f"Alone it tells the classes with an AUROC of {figure:.3f}, the whole picture with {whole:.3f}."
    remedy = "Crop to the lungs, or bring all classes into one form; then audit again." if verdict != "PASS" else ""
    return Finding(check=check, title=title, verdict=verdict, words=words, remedy=remedy, figure=figure, null=0.5)


def _judge_blackened(figure: float, whole: float) -> Finding:
    left = (figure - 0.5) / (whole - 0.5) if whole > 0.6 else 0.0
    verdict = "FAIL" if left > 0.5 and figure >= 0.85 else "WARN" if left > 0.5 and figure >= 0.70 else "PASS"
    words = f"With its centre black the picture tells the classes with an AUROC of {figure:.3f} ({whole:.3f} whole)."
    remedy = "" if verdict == "PASS" else "Look at explanations before believing figures: it is not the lungs."
    title = "The centre blacked out"
    return Finding(check="centre", title=title, verdict=verdict, words=words, remedy=remedy, figure=figure, null=0.5)


def _check_itself(figure: float) -> Finding:
    is_well = 0.4 <= figure <= 0.6
    words = f"On shuffled labels the probe reaches {figure:.3f}" + (
        ", as it should." if is_well else ": too few images, and the probes above say little."
    )
    verdict = "PASS" if is_well else "WARN"
    return Finding(check="shuffled", title="The audit itself", verdict=verdict, words=words, figure=figure, null=0.5)
