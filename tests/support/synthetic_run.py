"""A synthetic run folder with seven epochs in three stages and thumbnails, without training."""

import json

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter

from fastcxr.metrics.predictions import make_predictions, write_predictions

LABELS = ("Covid-19", "No_findings", "Pneumonia")


def make_manifest(labels=LABELS, n=1000, seed=0):
    """Return a manifest of patients with one to four images each; patients are split 70/15/15."""
    draw = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n), draw.integers(1, 5, n))[:n]
    kind = draw.choice(len(labels), n, p=np.r_[0.12, np.full(len(labels) - 1, 0.88 / (len(labels) - 1))])[patient]
    split = draw.choice(["train", "valid", "test"], n, p=[0.7, 0.15, 0.15])[patient]
    name = [f"{labels[k]}/{p:08d}_{i:03d}.png" for i, (k, p) in enumerate(zip(kind, patient, strict=True))]
    return pd.DataFrame(
        {
            "source": "made-up",
            "path": name,
            "label": [labels[k] for k in kind],
            "patient": [f"{p:08d}" for p in patient],
            "patient_origin": "nih",
            "split": split,
            "split_origin": "patient",
        }
    )


def make_probability(manifest, labels=LABELS, seed=0, strength=2.2):
    """Return probabilities that favour the true class; rows sum to one."""
    draw = np.random.default_rng(seed)
    truth = pd.Index(labels).get_indexer(manifest["label"])
    logits = draw.normal(size=(len(manifest), len(labels))) + strength * np.eye(len(labels))[truth]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def make_history(stages=(("head", 2), ("upper", 2), ("all", 3)), top2=True):
    names = [name for name, epochs in stages for _ in range(epochs)]
    t = np.arange(1, len(names) + 1)
    wave = 0.012 * np.sin(3.1 * t)
    auroc = 0.95 - 0.25 * np.exp(-t / 2) + wave
    table = pd.DataFrame({"epoch": t, "stage": names, "train_loss": 0.45 + 0.75 * np.exp(-t / 3.0)})
    table = table.assign(valid_loss=0.56 + 0.5 * np.exp(-t / 2.4) - wave, accuracy=0.87 - 0.3 * np.exp(-t / 2.2) + wave)
    table = table.assign(auroc=auroc, **({"top2_accuracy": 0.97 - 0.1 * np.exp(-t / 2)} if top2 else {}))
    return table.assign(seconds=21.5 + 4 * (t > 2) + 9 * (t > 4), best=auroc >= np.maximum.accumulate(auroc))


def make_rates():
    rate = np.geomspace(1e-7, 1.0, 90)
    curves = []
    for stage, low in (("head", 3e-3), ("upper", 8e-4), ("all", 2e-4)):
        x = np.log10(rate / low)
        loss = 1.15 - 0.35 / (1 + np.exp(-2.2 * x)) + 0.08 * np.exp(2.0 * np.clip(x - 1.3, 0, 3)) * (x > 1.3)
        curves.append(pd.DataFrame({"stage": stage, "rate": rate, "loss": loss}))
    return pd.concat(curves)


RECIPE = {
    "format": 2,
    "backbone": "mobilenetv2_100",
    "data": "../data/ozturk",
    "weights": "pretrained",
    "image_size": 224,
    "batch_size": 32,
    "epochs": 3,
    "strategy": [
        {"name": "head", "groups": 1, "epochs": 2, "scale": 1.0, "multiples": None},
        {"name": "upper", "groups": 2, "epochs": 2, "scale": 0.5, "multiples": None},
        {"name": "all", "groups": "all", "epochs": 3, "scale": 0.2, "multiples": [0.01, 0.1, 1.0]},
    ],
    "learning_rate": "find",
    "loss": "label_smoothing",
    "optimizer": "radam",
    "class_weights": "none",
    "augment": {
        "do_flip": False,
        "flip_vert": False,
        "max_rotate": 7.0,
        "max_zoom": 1.1,
        "max_warp": 0.1,
        "p_affine": 0.75,
    },
    "seed": 42,
    "split": "patient",
    "patient_table": None,
}


def make_model(labels=LABELS, **choices):
    rates = [{"stage": stage, "rate": rate, "found": True, "reason": "valley"} for stage, rate in RATES.items()]
    return {
        "format": 2,
        "kind": "single_label",
        "labels": list(labels),
        "backbone": {
            "library": "timm",
            "name": "mobilenetv2_100",
            "tag": "ra_in1k",
            "weights": "mobilenetv2_100.ra_in1k",
            "weights_sha256": None,
            "parameters": 2_227_715,
        },
        "input_spec": {"image_size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        "choices": {"device": "cpu", "precision": "fp32", "learning_rates": rates, "monitor": "auroc", "best_epoch": 7}
        | {"best_value": 0.9457}
        | choices,
        "files": {"model.safetensors": "4f5c" * 16},
    }


RATES = {"head": 2.4e-3, "upper": 6.9e-4, "all": 1.4e-4}
RUN = {
    "command": "fastcxr train mobilenetv2_100 --data ../data/ozturk --learning-rate find --out runs/first",
    "started": "2026-03-01T09:30:00+00:00",
    "seconds": 252.7,
    "versions": {"fastcxr": "0.1.0", "python": "3.12.4", "torch": "2.8.0", "fastai": "2.8.12", "timm": "1.0.20"},
    "machine": "Linux x86_64, 2 cores, no GPU",
    "messages": [
        {"level": "info", "text": "3 classes, 1,000 images, 401 patients from NIH file names"},
        {"level": "warning", "text": "mobilenetv2_100 has several pretrained tags: ra_in1k was taken"},
    ],
}


def write_thumbnail(path, seed):
    """Write a gray ellipse with two darker fields."""
    draw = np.random.default_rng(seed)
    image = Image.new("L", (160, 160), 40)
    pen = ImageDraw.Draw(image)
    pen.ellipse((10, 20, 150, 190), fill=150 + int(draw.integers(0, 50)))
    for left in (28, 86):
        top = 34 + int(draw.integers(-6, 6))
        pen.ellipse((left, top, left + 46, top + 96), fill=45 + int(draw.integers(0, 40)))
    image.filter(ImageFilter.GaussianBlur(4)).save(path, quality=80)


def write_thumbnails(folder, samples, wrong):
    (folder / "figures" / "images").mkdir(parents=True)
    rows = [("sample", row) for row in samples.itertuples()] + [("wrong", row) for row in wrong.itertuples()]
    for i, _ in enumerate(rows):
        write_thumbnail(folder / "figures" / "images" / f"{i}.jpg", i)
    table = [(role, row.source, row.path, f"figures/images/{i}.jpg") for i, (role, row) in enumerate(rows)]
    pd.DataFrame(table, columns=["role", "source", "path", "file"]).to_csv(
        folder / "figures" / "images.csv", index=False
    )


def write_histograms(folder, manifest):
    """Write histograms.csv and file_stats.csv of classes that differ slightly."""
    center, rows = np.linspace(-1, 1, 64), []
    for k, (label, of_class) in enumerate(manifest.groupby("label")):
        mean = np.exp(-((center - 0.1 * k) ** 2) * 3)
        mean = mean / mean.sum()
        columns = {"bin": np.arange(64), "mean": mean, "low": 0.6 * mean, "high": 1.5 * mean}
        rows.append(pd.DataFrame({"label": label} | columns | {"images": min(len(of_class), 200)}))
    pd.concat(rows).to_csv(folder / "histograms.csv", index=False)
    sizes = manifest.groupby("label").size().clip(upper=200).rename("images").reset_index()
    sizes = sizes.assign(kind="PNG", width=1024, height=900)
    sizes[["label", "kind", "width", "height", "images"]].to_csv(folder / "file_stats.csv", index=False)


def build_description(folder, manifest=None, run=(), thumbnails=True):
    """Write all files of a description except its page and figures."""
    from fastcxr.data.statistics import sample_per_class

    folder.mkdir(parents=True, exist_ok=True)
    manifest = make_manifest() if manifest is None else manifest
    manifest.to_csv(folder / "manifest.csv", index=False)
    write_histograms(folder, manifest)
    account = RUN | {"cohort": "3 classes, 1,000 images, 401 patients from NIH file names", "seed": 42} | dict(run)
    (folder / "run.json").write_text(json.dumps(account))
    if thumbnails:
        write_thumbnails(folder, sample_per_class(manifest, 4), manifest.iloc[:0])
    return folder


def build_run(folder, manifest=None, labels=LABELS, recipe=(), run=(), history=None, thumbnails=True):
    """Write all files of a run folder except those of the report."""
    from fastcxr.data.statistics import sample_per_class
    from fastcxr.metrics.predictions import select_most_wrong

    folder.mkdir(parents=True, exist_ok=True)
    manifest = make_manifest(labels) if manifest is None else manifest
    scored = manifest[manifest["split"] != "train"].reset_index(drop=True)
    predictions = make_predictions(scored, make_probability(scored, labels), labels)
    write_predictions(predictions, folder / "predictions.csv")
    manifest.to_csv(folder / "manifest.csv", index=False)
    write_histograms(folder, manifest)
    (make_history() if history is None else history).to_csv(folder / "history.csv", index=False)
    make_rates().to_csv(folder / "learning_rate.csv", index=False)
    for name, content in (("recipe", RECIPE | dict(recipe)), ("model", make_model(labels)), ("run", RUN | dict(run))):
        (folder / f"{name}.json").write_text(json.dumps(content))
    if thumbnails:
        write_thumbnails(folder, sample_per_class(manifest, 4), select_most_wrong(predictions, 8))
    return folder
