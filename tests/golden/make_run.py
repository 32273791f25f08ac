"""Remake tests/golden/run and tests/fixtures/run_0_1*: a small run on the bundled synthetic sample.

    python tests/golden/make_run.py

Only needed where a run is to leave other files behind. What its report says is rewritten by FASTCXR_UPDATE_GOLDEN=1.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / "support"), str(TESTS.parent)]

from tiny_network import NAME  # noqa: E402  timm knows the network from here on

from fastcxr.config.recipe import Augmentation, Recipe, Stage  # noqa: E402
from fastcxr.io.files import list_files, write_checksums  # noqa: E402
from fastcxr.report.run_page import write_run_report  # noqa: E402
from fastcxr.training.resume import CheckpointCallback  # noqa: E402
from fastcxr.workflows.train import run  # noqa: E402

THUMBNAIL_SIZE = 40  # pixels
DRAWN = ("report.html", "metrics.json", "MODEL_CARD.md", "CLAIM.md", "SHA256SUMS")
STAGES = Stage(name="head", groups=1, epochs=1), Stage(epochs=10, scale=30)  # of a rate that the finder leaves at 0.001
RECIPE = Recipe(
    NAME, data="sample", weights="none", image_size=64, batch_size=16, strategy=STAGES, learning_rate="find",
    optimizer="adam", precision="fp32", label_smoothing=0.0, augment=Augmentation(p_affine=0, p_lighting=0),
    abstain_rate=0.1, prevalence=("lobar_opacity=0.05",), skip_bad=True,
)  # fmt: skip


class Crash(BaseException):
    """The process ends here."""


def copy_sample(folder: Path) -> None:
    """The bundled sample with one damaged file."""
    shutil.copytree(TESTS.parent / "data" / "sample", folder)
    victim = min((folder / "clear_lungs").iterdir())
    victim.write_bytes(victim.read_bytes()[:900])


def run_until_crash(folder: Path) -> None:
    """A run that ends after some epochs, as that of a process that is killed."""
    left, keep = [60], CheckpointCallback.after_batch

    def after_batch(self):
        keep(self)
        left[0] -= 1
        if not left[0]:
            raise Crash

    CheckpointCallback.after_batch = after_batch
    try:
        run(RECIPE, folder)
    except Crash:
        pass
    finally:
        CheckpointCallback.after_batch = keep


def shrink_pictures(folder: Path) -> None:
    """Thumbnails and heat maps of a few hundred bytes."""
    for file in folder.glob("figures/*/*.jpg"):
        picture = Image.open(file)
        picture.thumbnail((2 * THUMBNAIL_SIZE, THUMBNAIL_SIZE))
        picture.save(file, quality=50)


def replace_folder(made: Path, kept: Path, *left_out: str) -> None:
    """The run folder in the place where the repository keeps it, without some of its files."""
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(made, kept, ignore=shutil.ignore_patterns("*.lock", *left_out))


def main() -> None:
    """Make all three folders."""
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)  # recipe.json of an unfinished run keeps the place of the data
        copy_sample(Path("sample"))
        finished, unfinished = Path("run"), Path("unfinished")
        run(RECIPE, finished)
        shrink_pictures(finished)
        write_run_report(finished)
        write_checksums(finished, list_files(finished))
        replace_folder(finished, TESTS / "fixtures" / "run_0_1")
        replace_folder(finished, TESTS / "golden" / "run", *DRAWN, "*.svg", "*.safetensors")
        run_until_crash(unfinished)
        *older, _ = sorted(path.name for path in (unfinished / "state").glob("*.safetensors"))
        replace_folder(unfinished, TESTS / "fixtures" / "run_0_1_unfinished", *(f"{name}*" for name in older))


if __name__ == "__main__":
    main()
