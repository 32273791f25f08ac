"""How often the audit fails a cohort without a shortcut, and how often it finds planted shortcuts and copies.

    python benchmarks/audit.py --data DIR [--label No_findings] [--seeds 100] [--planted 20]

Images of one label are given one of two made-up labels at random, patient by patient, and all are saved anew: nothing
tells them apart, so a FAIL is a false alarm. Then a shortcut is planted into the second label's pictures or files, and
that its check does not FAIL is a miss. At last every picture is put into the test split once more, in another form.
"""

import argparse
import io
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import binomtest

from fastcxr import read_manifest
from fastcxr.audit.image_features import ImageFeatures, extract_features
from fastcxr.audit.manifest_checks import check_sources
from fastcxr.audit.near_duplicates import find_near_duplicates
from fastcxr.audit.shortcut_probes import check_shortcuts
from fastcxr.data.duplicates import hash_files
from fastcxr.data.imaging.read import read_image
from fastcxr.progress.base import Progress

Change = Callable[[Image.Image], Image.Image]


def leave(picture: Image.Image) -> Image.Image:
    """As it is."""
    return picture


def mark_corner(picture: Image.Image) -> Image.Image:
    """A bright L near a corner, as marks of the left side are."""
    marked = picture.copy()
    side = min(picture.size)
    font = ImageFont.load_default(size=side * 0.09)
    ImageDraw.Draw(marked).text((side * 0.03, side * 0.02), "L", fill=240, font=font)
    return marked


def frame(picture: Image.Image) -> Image.Image:
    """Black bars of 3 % at all edges."""
    framed = Image.new("L", picture.size)
    left, top = (round(0.03 * side) for side in picture.size)
    framed.paste(picture.crop((left, top, picture.width - left, picture.height - top)), (left, top))
    return framed


def brighten(picture: Image.Image) -> Image.Image:
    """Another gamma, as another machine has."""
    return picture.point([round(255 * (value / 255) ** 0.7) for value in range(256)])


def shrink(picture: Image.Image) -> Image.Image:
    """Nine tenths of the size."""
    return picture.resize((round(0.9 * picture.width), round(0.9 * picture.height)))


def pad(picture: Image.Image) -> Image.Image:
    """Black bars of 8 % left and right, as squares are made."""
    padded = Image.new("L", (round(1.16 * picture.width), picture.height))
    padded.paste(picture, (round(0.08 * picture.width), 0))
    return padded


def coarsen(picture: Image.Image) -> Image.Image:
    """Through a JPEG of quality 30."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=30)
    return Image.open(content).convert("L")


@dataclass(frozen=True)
class Form:
    """How pictures are changed, and saved."""

    change: Change = leave
    suffix: str = "png"
    quality: int = 90

    def save(self, files: list[str], folder: Path) -> list[str]:
        """Every picture in this form; returns the new files."""
        folder.mkdir()
        saved = [str(folder / f"{number}.{self.suffix}") for number in range(len(files))]
        for file, place in zip(files, saved, strict=True):
            picture = self.change(Image.fromarray(read_image(file)))
            picture.save(place, **({"quality": self.quality} if self.suffix == "jpg" else {"compress_level": 1}))
        return saved


PLAIN = Form()
SHORTCUTS = {  # what it is: the form of the second label's files and of the first's, and the checks that should FAIL
    "a mark in a corner": (Form(mark_corner), PLAIN, ("corners",)),
    "black bars at the edges": (Form(frame), PLAIN, ("edge",)),
    "another gamma": (Form(brighten), PLAIN, ("gray",)),
    "JPEG, the others PNG": (Form(suffix="jpg"), PLAIN, ("kind",)),
    "JPEG of quality 90, the others 75": (Form(suffix="jpg"), Form(suffix="jpg", quality=75), ("coarseness",)),
    "nine tenths of the size": (Form(shrink), PLAIN, ("size",)),
}
COPIES = {
    "JPEG of quality 30": coarsen,
    "nine tenths of the size": shrink,
    "another gamma": brighten,
    "black bars at two sides": pad,
}


def halve(manifest: pd.DataFrame, seeds: int) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    """Which images have the second label, and the manifest with both, patient by patient, for each seed."""
    patients = pd.factorize(manifest["patient"])[0]
    for seed in range(seeds):
        second = np.random.default_rng(seed).integers(0, 2, patients.max() + 1)[patients] == 1
        yield second, manifest.assign(label=np.where(second, "second", "first"))


def mix(one: ImageFeatures, other: ImageFeatures, chosen: np.ndarray) -> ImageFeatures:
    """The looks of the first where chosen, else of the second."""

    def choose(here: np.ndarray, there: np.ndarray) -> np.ndarray:
        return np.where(chosen.reshape(-1, *[1] * (here.ndim - 1)), here, there)

    facts = other.metadata.mask(np.tile(chosen[:, None], other.metadata.shape[1]), one.metadata)
    names = [part.name for part in fields(ImageFeatures) if part.name != "facts"]
    return ImageFeatures(**{name: choose(getattr(one, name), getattr(other, name)) for name in names}, metadata=facts)


def append(one: ImageFeatures, other: ImageFeatures) -> ImageFeatures:
    """The looks of both, one after the other."""
    names = [part.name for part in fields(ImageFeatures) if part.name != "facts"]
    pictures = {name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in names}
    return ImageFeatures(**pictures, metadata=pd.concat([one.metadata, other.metadata], ignore_index=True))


def share(found: int, of: int) -> str:
    """A count with its share and Wilson's interval."""
    low, high = binomtest(found, of).proportion_ci(method="wilson")
    return f"{found:>4} of {of:<4} {found / of:.3f} ({low:.3f} to {high:.3f})"


def measure_shortcuts(manifest: pd.DataFrame, look: Callable[[Form], ImageFeatures], seeds: int, planted: int) -> None:
    """A row for cohorts without a shortcut, and one for each shortcut."""
    plain, failed, which, started = look(PLAIN), 0, Counter(), time.perf_counter()
    for _, table in halve(manifest, seeds):
        names = [finding.check for finding in check_shortcuts(table, plain, Progress()) if finding.verdict == "FAIL"]
        failed += bool(names)
        which.update(names)
    seconds = (time.perf_counter() - started) / seeds
    print(f"{'nothing: false alarms':<36} {share(failed, seeds)}  {dict(which)} {seconds:.1f} s each", flush=True)
    for name, (second, first, checks) in SHORTCUTS.items():
        marked, plain, caught, warned = look(second), look(first), 0, 0
        for chosen, table in halve(manifest, planted):
            found = {row.check: row.verdict for row in check_shortcuts(table, mix(marked, plain, chosen), Progress())}
            caught += all(found.get(check) == "FAIL" for check in checks)
            warned += all(found.get(check) == "WARN" for check in checks)
        print(f"{name:<36} {share(caught, planted)}  WARN {warned} ({', '.join(checks)})", flush=True)
    caught = sum(check_sources(table.assign(source=table["label"])).verdict == "FAIL"
                 for _, table in halve(manifest, planted))  # fmt: skip
    print(f"{'each label from a source of its own':<36} {share(caught, planted)}  (sources)", flush=True)


def measure_copies(manifest: pd.DataFrame, look: Callable[[Form], ImageFeatures]) -> None:
    """A row for each form in which the test split holds every picture of the training split once more."""
    n, plain = len(manifest), look(PLAIN)
    wanted = {(number, number + n) for number in range(n)}
    bytes_ = hash_files(pd.concat([manifest["file"], manifest["file"]], ignore_index=True))
    print(f"{'the same bytes':<36} {share(int((bytes_[:n].to_numpy() == bytes_[n:].to_numpy()).sum()), n)}", flush=True)
    for name, change in COPIES.items():
        pairs = set(find_near_duplicates(append(plain, look(Form(change)))))
        print(f"{name:<36} {share(len(pairs & wanted), n)}  other pairs {len(pairs - wanted)}", flush=True)


def main() -> None:
    """Shortcuts, then copies."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", required=True)
    words.add_argument("--label", default="No_findings")
    words.add_argument("--seeds", type=int, default=100, help="of cohorts without a shortcut")
    words.add_argument("--planted", type=int, default=20, help="cohorts with each shortcut")
    given = words.parse_args()
    manifest = read_manifest(given.data)
    manifest = manifest[manifest["label"] == given.label].reset_index(drop=True)
    print(f"{len(manifest):,} images of {manifest['patient'].nunique():,} patients", flush=True)
    with tempfile.TemporaryDirectory() as place:

        def look(form: Form) -> ImageFeatures:
            with tempfile.TemporaryDirectory(dir=place) as folder:
                files = form.save(manifest["file"].tolist(), Path(folder) / "saved")
                return extract_features(files, Progress())

        measure_shortcuts(manifest, look, given.seeds, given.planted)
        measure_copies(manifest, look)


if __name__ == "__main__":
    main()
