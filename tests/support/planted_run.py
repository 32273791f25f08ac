"""Identifiers in every file of a run folder that a report reads, to check that none of them is published."""

import json
from pathlib import Path

import pandas as pd
from planted_identifiers import NAME

WEIGHTS, DATASET = "weights-of-a-study", "dataset-of-a-study"  # names that are published
JPEG_BASE64, PNG_BASE64 = "/9j/", "iVBORw0KGgo"  # start of an encoded image


def plant_identifiers(folder: Path) -> set[str]:
    """Add identifiers to all files of a synthetic run; return the texts that must not occur in a published file.

    These are a name that is part of every planted text, every path, file name and patient, and starts of images.
    """
    forbidden = {NAME, "data:image", JPEG_BASE64, PNG_BASE64}
    for name in ("manifest.csv", "predictions.csv", "figures/images.csv"):
        if (folder / name).is_file():
            table = _rename(pd.read_csv(folder / name, dtype=str, keep_default_na=False))
            table.to_csv(folder / name, index=False)
            forbidden |= {cell for column in ("path", "patient") if column in table for cell in table[column]}
            forbidden |= {Path(path).stem for path in table["path"]}
    _write_images(folder)
    _write_tables(folder)
    _extend_json(folder)
    return forbidden


def _rename(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the name in paths and patients, and in a further column."""
    stem = table["path"].str.rpartition("/")[2]
    changed = table.assign(path=f"{NAME} ward/" + stem, ward=f"{NAME} ward")
    return changed.assign(patient=f"{NAME}-" + table["patient"]) if "patient" in table else changed


def _write_images(folder: Path) -> None:
    images = folder / "figures" / "images.csv"
    if images.is_file():
        table = pd.read_csv(images, dtype=str)
        maps = table.assign(border_share="0.9", note=NAME, error="", predicted="", probability="0.5", **{"class": ""})
        broken = maps.iloc[:1].assign(error=f"/home/{NAME}/a.png: corrupt", file="", path=f"{NAME}.png")
        pd.concat([maps, maps.assign(role="typical"), broken]).to_csv(folder / "saliency.csv", index=False)
    content = {"method": "grad_cam", "failure_reason": "", "border_share": {}, "data": f"/home/{NAME}"}
    (folder / "explain.json").write_text(json.dumps(content))


def _write_tables(folder: Path) -> None:
    rows = [(f"{NAME}/1.png", "E101", f"/home/{NAME}/1.png: empty file"), (f"{NAME}/2.png", "E104", NAME)]
    pd.DataFrame(rows, columns=["path", "code", "reason"]).to_csv(folder / "skipped.csv", index=False)
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    shown = table[table["split"].isin(["train", "valid"])].head(60).reset_index(drop=True)
    shown = shown[["source", "path", "patient", "split", "label"]].assign(view="", method="PCA", x=shown.index, y=1.0)
    nearest = shown.iloc[::-1].reset_index(drop=True)
    shown = shown.assign(nearest_source=nearest["source"], nearest_path=nearest["path"])
    shown.to_csv(folder / "feature_map.csv", index=False)
    group = [[row.source, row.path] for row in table.head(2).itertuples()]
    finding = {"check": "duplicates", "title": "Duplicates", "verdict": "FAIL", "message": "2 pairs.", "fix": "Fix."}
    finding |= {"value": 0.5, "chance_level": 0.0, "groups": [group], "example": f"/home/{NAME}/a.png"}
    reused = {"folder": f"audit-of-{NAME}", "date": "2026-03-01"}
    (folder / "audit.json").write_text(json.dumps({"findings": [finding], "reused_audit": reused}))


def _extend_json(folder: Path) -> None:
    private = {
        "data": [f"/home/{NAME}/{DATASET}.csv", f"C:\\{NAME}\\{DATASET}\\"],
        "weights": f"/home/{NAME}/{WEIGHTS}.pth",
        "patient_table": f"{NAME}.csv",
        "patient_regex": f"{NAME}/(.*)",
        "split_file": [f"test={NAME}.txt"],
        "reuse_split": f"runs/{NAME}",
        "waive_audit": f"checked {NAME} at /home/{NAME}/a.png",
        "filter": [f"patient={NAME}", f"ward={NAME}", "View Position=PA"],
        "notes of a user": NAME,
    }
    messages = [{"level": level, "text": f"/home/{NAME}/a.png: {level}"} for level in ("info", "warning", "warning")]
    tuning = {"trials": 4, "complete": 4, "trial": 2, "metric": "auroc", "search": {"learning_rate": "1e-4 to 1e-2"}}
    tuning |= {"study": f"runs/tune-{NAME}"}
    run = {"tuning": tuning} | {
        "command": f"fastcxr train --data /home/{NAME}",
        "messages": messages,
        "host": NAME,
        "cohort": NAME,
    }
    model = {"path": f"/home/{NAME}"}
    for name, added in (("recipe", private), ("run", run), ("model", model)):
        path = folder / f"{name}.json"
        if path.is_file():
            content = json.loads(path.read_text())
            if name == "model":
                content["backbone"] |= {"weights": f"/home/{NAME}/{WEIGHTS}.pth"}
            path.write_text(json.dumps(content | added))
