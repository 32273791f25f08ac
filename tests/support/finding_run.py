"""A synthetic run folder with several findings per image, without training."""

import json

import numpy as np
import pandas as pd
from synthetic_run import RECIPE, RUN, make_history, make_model, write_histograms, write_thumbnails

from fastcxr.data.findings import BLANK_AS_ABSENT, FINDING_DTYPE, FINDING_PREFIX, make_finding_labels
from fastcxr.metrics.predictions import make_predictions, select_most_wrong, write_predictions

NIH = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip


def list_names(n):
    """Return n names of findings."""
    return (*NIH[:n], *(f"Finding {k}" for k in range(len(NIH), n)))


def make_finding_manifest(findings=NIH, n=600, seed=0, share=0.15):
    """Return a manifest with present, absent, blank, uncertain and unknown labels; two images per patient."""
    draw = np.random.default_rng(seed)
    patient = np.arange(n) // 2
    columns = {}
    for k, name in enumerate(findings):
        values = np.where(draw.random(n) < max(0.02, share - 0.01 * k), 1, 0)
        state = draw.random(n)
        values = np.where((state < 0.3) & (values == 0), BLANK_AS_ABSENT, values)
        column = pd.Series(np.where(state > 0.97, -1, values)).astype(FINDING_DTYPE)
        columns[FINDING_PREFIX + name] = column.mask(pd.Series((state > 0.92) & (state < 0.95)))
    labels = pd.DataFrame(columns)
    base = {
        "source": "made-up",
        "path": [f"images/{p:05d}_{i:05d}.png" for i, p in enumerate(patient)],
        "label": make_finding_labels(labels),
        "patient": [f"{p:05d}" for p in patient],
        "patient_origin": "nih",
        "split": draw.choice(["train", "valid", "test"], n, p=[0.5, 0.2, 0.3])[patient],
        "split_origin": "patient",
        "sex": draw.choice(["F", "M"], n)[patient],
        "age": draw.integers(20, 90, n)[patient].astype(str),
        "view": draw.choice(["PA", "AP"], n),
    }
    return pd.DataFrame(base).assign(**columns)


def make_finding_probability(manifest, findings, seed=0, strength=1.5):
    """Return probabilities that favour the present findings, shape (n, k)."""
    draw = np.random.default_rng(seed)
    values = manifest[[FINDING_PREFIX + name for name in findings]].to_numpy(float, na_value=np.nan)
    logits = draw.normal(size=values.shape) - 2 + strength * (values == 1)
    return 1 / (1 + np.exp(-logits))


def build_finding_run(folder, findings=NIH, manifest=None, recipe=(), model=(), thumbnails=True):
    """Write all files of a run folder of findings except those of the report."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = make_finding_manifest(findings) if manifest is None else manifest
    scored = manifest[manifest["split"] != "train"].reset_index(drop=True)
    predictions = make_predictions(scored, make_finding_probability(scored, findings), findings, findings=True)
    write_predictions(predictions, folder / "predictions.csv")
    manifest.to_csv(folder / "manifest.csv", index=False)
    make_history(top2=False).drop(columns="accuracy").to_csv(folder / "history.csv", index=False)
    options = RECIPE | {
        "loss": "auto",
        "label_smoothing": None,
        "monitor": "auto",
        "blank": [],
        "uncertain": ["ignore"],
    }
    content = make_model(findings) | {"kind": "multi_label", "calibration": {"temperature": 1.0}} | dict(model)
    for name, part in (("recipe", options | dict(recipe)), ("model", content), ("run", RUN)):
        (folder / f"{name}.json").write_text(json.dumps(part))
    if thumbnails:
        shown = manifest.assign(label=manifest["label"].str.partition("|")[0])
        write_histograms(folder, shown[shown["label"].isin(findings[:8])])
        write_thumbnails(folder, manifest.iloc[:8], select_most_wrong(predictions, 2))
    return folder
