"""Folders, tables and manifests that the tests of this room make for themselves; no image in them is ever decoded."""

from pathlib import Path

import pandas as pd

from fastcxr.errors import FastcxrError


def fill(root: Path, *paths: str) -> Path:
    """Files with one byte each, and the folders above them; a path that ends in a slash is a folder."""
    for path in paths:
        place = root / path
        (place if path.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        if not path.endswith("/"):
            place.write_bytes(b"x")
    return root


def fill_two(root: Path, **more: str) -> Path:
    """Two classes of two images each."""
    return fill(root, "covid/a.png", "covid/b.png", "normal/c.png", "normal/d.png", *more)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def make_manifest(rows: list[tuple[str, str]], source: str = "here") -> pd.DataFrame:
    """A manifest of (patient, label) rows, as read_manifest makes it."""
    table = pd.DataFrame(rows, columns=["patient", "label"], dtype="object").astype("str")
    paths = [f"{label}/{i:05d}.png" for i, label in enumerate(table["label"])]
    blank = pd.Series(index=table.index, dtype="object").astype(table["label"].dtype)
    return pd.DataFrame(
        {
            "source": source,
            "path": paths,
            "label": table["label"],
            "patient": table["patient"],
            "patient_from": "column",
            "split": blank,
            "split_from": blank,
            "file": [f"/nowhere/{path}" for path in paths],
        }
    )


def one_line(error: FastcxrError) -> str:
    """The message, which must fit on one line and end its fix without a dot."""
    assert "\n" not in str(error)
    assert not error.what.endswith((".", "?"))
    assert not error.fix.endswith(".")
    return str(error)
