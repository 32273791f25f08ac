"""From a seed to a small cohort of SYNTHETIC chest radiographs: folder/<class>/<patient>_<image>.jpg."""

import io
import os
import shutil
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fastcxr.data.synthetic.anatomy import draw_body
from fastcxr.data.synthetic.canvas import Dice
from fastcxr.data.synthetic.film import FINDINGS, draw_film, draw_view
from fastcxr.errors import OutputError

IMAGES_PER_CLASS = 135
COMMENT = "SYNTHETIC chest radiograph drawn by fastcxr from formulas; no person was X-rayed; not for clinical use"
README = """SYNTHETIC chest radiographs: drawn by fastcxr from formulas, seed {seed}. No person was X-rayed.
They are for trying the software out. Nothing learned from them holds for a patient.

{images} images of {patients} invented patients: clear lungs, one lobar opacity, or a haze along both chest walls.
File names are like those of NIH ChestX-ray14: 00000013_005.jpg is image 5 of patient 00000013.
"""


@dataclass(frozen=True)
class Exposure:
    """One image of the cohort before it is drawn."""

    finding: str
    patient: int
    image: int
    body: int  # key of the anatomy
    key: int  # of everything else

    @property
    def name(self) -> str:
        return f"{self.patient:08d}_{self.image:03d}.jpg"


def plan_cohort(seed: int = 0) -> list[Exposure]:
    """Every image of the cohort, patient by patient; some of the ill are clear on their last image."""
    dice, far = Dice(seed, "cohort"), 100_000 * seed  # no patient's number reaches so far
    exposures, patient = [], 0
    for findings in dice.shuffled(_courses(dice)):
        patient, image = patient + 1 + dice.below(190), dice.below(4)
        for finding in findings:
            exposures.append(Exposure(finding, patient, image, far + patient, far + len(exposures)))
            image += 1 + dice.below(3)
    return exposures


def _courses(dice: Dice) -> list[list[str]]:
    """The findings of each patient in the order of the images, so many that every class gets its number."""
    clear, *ill = FINDINGS
    courses, recovered = [], 0
    for finding in (*ill, clear):  # the clear come last: the recovered count among them
        wanted = IMAGES_PER_CLASS - (recovered if finding == clear else 0)
        while wanted > 0:
            count = min((1, 1, 2, 2, 3, 4)[dice.below(6)], wanted)
            recovers = finding != clear and 1 < count < 4 and dice.chance(0.12)
            courses.append([finding] * count + [clear] * recovers)
            wanted, recovered = wanted - count, recovered + recovers
    return courses


def draw_image(exposure: Exposure) -> Image.Image:
    view = draw_view(exposure.key)
    return Image.fromarray(draw_film(draw_body(exposure.body), exposure.finding, view, exposure.key))


def draw_sample(folder: str | Path, *, seed: int = 0) -> Path:
    """Draw the cohort into a new folder; of two processes at once the first to end wins and both get its folder."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise _taken(folder)
    exposures = plan_cohort(seed)
    patients = len({exposure.patient for exposure in exposures})
    readme = README.format(seed=seed, images=len(exposures), patients=patients)
    draft = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    try:
        for finding in FINDINGS:
            (draft / finding).mkdir(parents=True)
        (draft / "README.txt").write_bytes(readme.encode())
        for exposure in exposures:
            (draft / exposure.finding / exposure.name).write_bytes(_jpeg(draw_image(exposure)))
        _move_into_place(draft, folder, readme)
    except OSError as error:
        raise OutputError(
            f"cannot be written ({error.strerror or error})",
            "Choose a folder you may write to with a few MB of room",
            path=folder,
            code="E401",
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def sample_folder() -> Path:
    """The cohort in this machine's cache, drawn on first use (some twenty seconds)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "fastcxr" / "sample-v1"
    return folder if (folder / "README.txt").is_file() else draw_sample(folder)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, comment=COMMENT)
    return buffer.getvalue()


def _move_into_place(draft: Path, folder: Path, readme: str) -> None:
    try:
        if folder.is_dir():
            folder.rmdir()  # an empty folder may be replaced, which not every system does by itself
        draft.rename(folder)
    except OSError:
        theirs = folder / "README.txt"
        if not theirs.is_file() or theirs.read_text() != readme:
            raise


def _taken(folder: Path) -> OutputError:
    return OutputError(
        "already holds something", "Choose a new folder, or remove this one first", path=folder, code="E402"
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m fastcxr.data.synthetic.sample DIR")
    try:
        draw_sample(sys.argv[1])
    except OutputError as error:
        sys.exit(f"{error}")
