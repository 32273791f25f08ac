"""Folders, tables and manifests for tests that never decode an image."""

from pathlib import Path

import pandas as pd

from fastcxr.errors import FastcxrError

PNG = b"\x89PNG\r\n\x1a\n"


def write_files(root: Path, *paths: str) -> Path:
    """Write files of one byte and their parent folders; a path that ends in a slash is a folder."""
    for path in paths:
        file = root / path
        (file if path.endswith("/") else file.parent).mkdir(parents=True, exist_ok=True)
        if not path.endswith("/"):
            file.write_bytes(b"x")
    return root


def write_two_classes(root: Path, **more: str) -> Path:
    """Write two classes of two images each."""
    return write_files(root, "covid/a.png", "covid/b.png", "normal/c.png", "normal/d.png", *more)


def write_file(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def make_manifest(rows: list[tuple[str, str]], source: str = "here") -> pd.DataFrame:
    """Return a manifest of (patient, label) rows, as read_manifest does."""
    table = pd.DataFrame(rows, columns=["patient", "label"], dtype="object").astype("str")
    paths = [f"{label}/{i:05d}.png" for i, label in enumerate(table["label"])]
    blank = pd.Series(index=table.index, dtype="object").astype(table["label"].dtype)
    return pd.DataFrame(
        {
            "source": source,
            "path": paths,
            "label": table["label"],
            "patient": table["patient"],
            "patient_origin": "column",
            "split": blank,
            "split_origin": blank,
            "file": [f"/nowhere/{path}" for path in paths],
        }
    )


def check_message(error: FastcxrError) -> str:
    """Return the message; check that it is one line and that its fix has no full stop."""
    assert "\n" not in str(error)
    assert not error.problem.endswith((".", "?"))
    assert not error.fix.endswith(".")
    return str(error)


def make_copied(root: Path, images: int = 30, labels: tuple[str, ...] = ("x", "y")) -> pd.DataFrame:
    """Return a manifest of files without patients, in which each file has an exact duplicate of another name."""
    rows = []
    for label in labels:
        for number in range(images):
            for name in ("first", "second"):
                path = f"{label}/{name}{number}.png"
                write_file(write_files(root, path) / path, PNG + f"{label} {number}".encode())
                rows.append((path, label))
    paths = [path for path, _ in rows]
    manifest = make_manifest([(f"image:{path}", label) for path, label in rows])
    return manifest.assign(path=paths, patient_origin="image", file=[str(root / path) for path in paths])
