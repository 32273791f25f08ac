"""Write tests/golden/run again: a small run on the bundled synthetic sample.

    python tests/golden/make_run.py

Only needed if a run writes other files. FASTCXR_UPDATE_GOLDEN=1 rewrites the text of its report. The runs in
tests/fixtures were written by version 0.1 and cannot be written again.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / "support"), str(TESTS.parent)]

from tiny_network import NAME  # noqa: E402  registers the network in timm

from fastcxr.config.recipe import Augmentation, Recipe, Stage  # noqa: E402
from fastcxr.workflows.train import run  # noqa: E402

THUMBNAIL_SIZE = 40  # pixels
GENERATED_FILES = ("report.html", "metrics.json", "MODEL_CARD.md", "CLAIM.md", "SHA256SUMS", "*.svg", "*.safetensors")
STAGES = Stage(name="head", groups=1, epochs=1), Stage(epochs=10, scale=30)  # the finder keeps the default of 0.001
RECIPE = Recipe(
    NAME, data="sample", weights="none", image_size=64, batch_size=16, strategy=STAGES, learning_rate="find",
    optimizer="adam", precision="fp32", label_smoothing=0.0, augment=Augmentation(p_affine=0, p_lighting=0),
    abstain_rate=0.1, prevalence=("lobar_opacity=0.05",), skip_bad=True,
)  # fmt: skip


def copy_sample(folder: Path) -> None:
    """Copy the bundled sample and truncate one file."""
    shutil.copytree(TESTS.parent / "data" / "sample", folder)
    truncated = min((folder / "clear_lungs").iterdir())
    truncated.write_bytes(truncated.read_bytes()[:900])


def shrink_images(folder: Path) -> None:
    """Reduce thumbnails and saliency maps to a few hundred bytes each."""
    for file in folder.glob("figures/*/*.jpg"):
        image = Image.open(file)
        image.thumbnail((2 * THUMBNAIL_SIZE, THUMBNAIL_SIZE))
        image.save(file, quality=50)


def main() -> None:
    """Train in a temporary folder and copy the run folder without the files that the golden test generates."""
    golden_run = TESTS / "golden" / "run"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        copy_sample(Path("sample"))
        run(RECIPE, "run")
        shrink_images(Path("run"))
        shutil.rmtree(golden_run, ignore_errors=True)
        shutil.copytree("run", golden_run, ignore=shutil.ignore_patterns("*.lock", *GENERATED_FILES))


if __name__ == "__main__":
    main()
