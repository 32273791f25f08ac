"""False alarms of the audit on datasets without a shortcut, and detection of planted shortcuts and duplicates.

    python benchmarks/audit.py --data DIR [--label No_findings] [--seeds 100] [--planted 20]

The images of one label get one of two artificial labels at random, grouped by patient, and are saved again. The two
halves do not differ, so a FAIL is a false alarm. Then a shortcut is planted into the images or files of the second
half: a miss is a shortcut whose check does not FAIL. Finally every image is added to the test split again, in another
form, and the fraction of these pairs that is found is printed.
"""

import io
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from common import format_proportion, make_parser
from PIL import Image, ImageDraw, ImageFont

from fastcxr import read_manifest
from fastcxr.audit.image_features import ImageFeatures, extract_features
from fastcxr.audit.manifest_checks import check_sources
from fastcxr.audit.near_duplicates import find_near_duplicates
from fastcxr.audit.shortcut_probes import check_shortcuts
from fastcxr.data.duplicates import hash_files
from fastcxr.data.imaging.read import read_image
from fastcxr.progress.base import Progress


def keep(image: Image.Image) -> Image.Image:
    return image


def mark_corner(image: Image.Image) -> Image.Image:
    """Draw a bright L near a corner, as a side marker."""
    marked = image.copy()
    side = min(image.size)
    font = ImageFont.load_default(size=side * 0.09)
    ImageDraw.Draw(marked).text((side * 0.03, side * 0.02), "L", fill=240, font=font)
    return marked


def frame(image: Image.Image) -> Image.Image:
    """Set 3 % at each edge to black."""
    framed = Image.new("L", image.size)
    left, top = (round(0.03 * side) for side in image.size)
    framed.paste(image.crop((left, top, image.width - left, image.height - top)), (left, top))
    return framed


def apply_gamma(image: Image.Image) -> Image.Image:
    return image.point([round(255 * (value / 255) ** 0.7) for value in range(256)])


def shrink(image: Image.Image) -> Image.Image:
    return image.resize((round(0.9 * image.width), round(0.9 * image.height)))


def pad(image: Image.Image) -> Image.Image:
    """Add black bars of 8 % left and right."""
    padded = Image.new("L", (round(1.16 * image.width), image.height))
    padded.paste(image, (round(0.08 * image.width), 0))
    return padded


def compress(image: Image.Image) -> Image.Image:
    """Encode as JPEG of quality 30, and decode."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=30)
    return Image.open(content).convert("L")


@dataclass(frozen=True)
class Form:
    """Change of the pixels, and file format."""

    change: Callable[[Image.Image], Image.Image] = keep
    suffix: str = "png"
    quality: int = 90

    def extract(self, files: list[str]) -> ImageFeatures:
        """Save the images in this form in a temporary folder, and return their features."""
        options = {"quality": self.quality} if self.suffix == "jpg" else {"compress_level": 1}
        with tempfile.TemporaryDirectory() as folder:
            saved = [str(Path(folder) / f"{number}.{self.suffix}") for number in range(len(files))]
            for file, path in zip(files, saved, strict=True):
                self.change(Image.fromarray(read_image(file))).save(path, **options)
            return extract_features(saved, Progress())


PLAIN = Form()
SHORTCUTS = {  # form of the second half, form of the first half, the check that should FAIL
    "bright L in a corner": (Form(mark_corner), PLAIN, "corners"),
    "black bars at the edges": (Form(frame), PLAIN, "edge"),
    "gamma .7": (Form(apply_gamma), PLAIN, "gray"),
    "JPEG, the others PNG": (Form(suffix="jpg"), PLAIN, "kind"),
    "JPEG of quality 90, the others 75": (Form(suffix="jpg"), Form(suffix="jpg", quality=75), "coarseness"),
    "nine tenths of the size": (Form(shrink), PLAIN, "size"),
}
DUPLICATES = {
    "JPEG of quality 30": compress,
    "nine tenths of the size": shrink,
    "gamma .7": apply_gamma,
    "black bars left and right": pad,
}


def draw_halves(manifest: pd.DataFrame, seeds: int) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    """Yield for each seed the images of the second half, and the manifest with both labels, grouped by patient."""
    patients = pd.factorize(manifest["patient"])[0]
    for seed in range(seeds):
        is_second = np.random.default_rng(seed).integers(0, 2, patients.max() + 1)[patients] == 1
        yield is_second, manifest.assign(label=np.where(is_second, "second", "first"))


def concatenate(*parts: ImageFeatures) -> ImageFeatures:
    names = ("thumbnails", "trimmed_thumbnails", "histogram")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return ImageFeatures(**arrays, metadata=pd.concat([part.metadata for part in parts], ignore_index=True))


def format_count(count: int, total: int) -> str:
    return f"{count:>4} of {total:<4} {format_proportion(count / total, total)}"


def measure_shortcuts(manifest: pd.DataFrame, seeds: int, planted: int) -> None:
    """Print a row for datasets without a shortcut, and one for each shortcut."""
    files = manifest["file"].tolist()
    plain, n_failed, failed_checks, started = PLAIN.extract(files), 0, Counter(), time.perf_counter()
    for _, table in draw_halves(manifest, seeds):
        names = [finding.check for finding in check_shortcuts(table, plain, Progress()) if finding.verdict == "FAIL"]
        n_failed += bool(names)
        failed_checks.update(names)
    seconds = (time.perf_counter() - started) / seeds
    row = f"{format_count(n_failed, seeds)}  {dict(failed_checks)} {seconds:.1f} s each"
    print(f"{'nothing: false alarms':<36} {row}", flush=True)
    for name, (second, first, check) in SHORTCUTS.items():
        both, verdicts = concatenate(first.extract(files), second.extract(files)), Counter()
        for is_second, table in draw_halves(manifest, planted):
            features = both.select_rows(np.arange(len(files)) + len(files) * is_second)
            found = {row.check: row.verdict for row in check_shortcuts(table, features, Progress())}
            verdicts[found.get(check)] += 1
        print(f"{name:<36} {format_count(verdicts['FAIL'], planted)}  WARN {verdicts['WARN']} ({check})", flush=True)
    tables = [table.assign(source=table["label"]) for _, table in draw_halves(manifest, planted)]
    n_failed = sum(check_sources(table).verdict == "FAIL" for table in tables)
    print(f"{'different source for each half':<36} {format_count(n_failed, planted)}  (sources)", flush=True)


def measure_duplicates(manifest: pd.DataFrame) -> None:
    """Print a row for each form in which the test split contains every image of the training split."""
    n, files = len(manifest), manifest["file"].tolist()
    plain, true_pairs = PLAIN.extract(files), {(number, number + n) for number in range(n)}
    hashes = hash_files(pd.Series(files * 2)).to_numpy()
    print(f"{'the same bytes':<36} {format_count(int((hashes[:n] == hashes[n:]).sum()), n)}", flush=True)
    for name, change in DUPLICATES.items():
        pairs = set(find_near_duplicates(concatenate(plain, Form(change).extract(files))))
        row = f"{format_count(len(pairs & true_pairs), n)}  other pairs {len(pairs - true_pairs)}"
        print(f"{name:<36} {row}", flush=True)


def main() -> None:
    """Measure shortcuts, then duplicates."""
    parser = make_parser(__doc__, ["data"])
    parser.add_argument("--label", default="No_findings", help="label of the images that are used")
    parser.add_argument("--seeds", type=int, default=100, help="number of datasets without a shortcut")
    parser.add_argument("--planted", type=int, default=20, help="number of datasets with each shortcut")
    given = parser.parse_args()
    manifest = read_manifest(given.data)
    manifest = manifest[manifest["label"] == given.label].reset_index(drop=True)
    print(f"{len(manifest):,} images of {manifest['patient'].nunique():,} patients", flush=True)
    measure_shortcuts(manifest, given.seeds, given.planted)
    measure_duplicates(manifest)


if __name__ == "__main__":
    main()
