"""Small sample dataset of SYNTHETIC chest radiographs: folder/<class>/<patient>_<image>.jpg."""

import io
import shutil
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fastcxr.data.cache.quota import find_image_cache_dir
from fastcxr.data.synthetic.anatomy import make_body
from fastcxr.data.synthetic.canvas import Rng
from fastcxr.data.synthetic.film import FINDINGS, draw_radiograph, make_view
from fastcxr.errors import OutputError

IMAGES_PER_CLASS = 135
JPEG_COMMENT = "SYNTHETIC chest radiograph drawn by fastcxr from formulas; no person was X-rayed; not for clinical use"
README_TEMPLATE = """SYNTHETIC chest radiographs: computed by fastcxr from formulas, seed {seed}. No person was X-rayed.
The images are for software tests. Results on them do not apply to patients.

{images} images of {patients} synthetic patients: clear lungs, one lobar opacity, or haze along both chest walls.
File names have the format of NIH ChestX-ray14: 00000013_005.jpg is image 5 of patient 00000013.
"""


@dataclass(frozen=True)
class Exposure:
    """One planned image of the sample."""

    finding: str
    patient: int
    image: int
    body: int  # random key of the anatomy
    key: int  # random key of view, exposure and finding

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.patient:08d}_{self.image:03d}.jpg"


def plan_images(seed: int = 0) -> list[Exposure]:
    """Return all images, patient by patient; some patients with a finding recover on their last image."""
    rng, key_offset = Rng(seed, "cohort"), 100_000 * seed  # above every patient number
    exposures, patient = [], 0
    for findings in rng.shuffled(_plan_findings(rng)):
        patient, image = patient + 1 + rng.integer(190), rng.integer(4)
        for finding in findings:
            exposures.append(Exposure(finding, patient, image, key_offset + patient, key_offset + len(exposures)))
            image += 1 + rng.integer(3)
    return exposures


def _plan_findings(rng: Rng) -> list[list[str]]:
    """Return the findings of each patient in the order of the images; every class has IMAGES_PER_CLASS images."""
    normal_finding, *abnormal_findings = FINDINGS
    timelines, n_recovered = [], 0
    for finding in (*abnormal_findings, normal_finding):  # last: recovered patients count as clear lungs
        n_missing = IMAGES_PER_CLASS - (n_recovered if finding == normal_finding else 0)
        while n_missing > 0:
            n_images = min((1, 1, 2, 2, 3, 4)[rng.integer(6)], n_missing)
            recovers = finding != normal_finding and 1 < n_images < 4 and rng.bernoulli(0.12)
            timelines.append([finding] * n_images + [normal_finding] * recovers)
            n_missing, n_recovered = n_missing - n_images, n_recovered + recovers
    return timelines


def draw_image(exposure: Exposure) -> Image.Image:
    """Return the 8-bit gray image of an exposure."""
    view = make_view(exposure.key)
    return Image.fromarray(draw_radiograph(make_body(exposure.body), exposure.finding, view, exposure.key))


def write_sample_dataset(folder: str | Path, *, seed: int = 0) -> Path:
    """Write the sample to a new folder and return it. Of two processes, the second uses the folder of the first."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(
            "the folder is not empty", "Choose a new folder, or remove this one", path=folder, code="E402"
        )
    exposures = plan_images(seed)
    patients = len({exposure.patient for exposure in exposures})
    readme = README_TEMPLATE.format(seed=seed, images=len(exposures), patients=patients)
    temporary_dir = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    try:
        for finding in FINDINGS:
            (temporary_dir / finding).mkdir(parents=True)
        (temporary_dir / "README.txt").write_bytes(readme.encode())
        for exposure in exposures:
            (temporary_dir / exposure.finding / exposure.name).write_bytes(_encode_jpeg(draw_image(exposure)))
        _move_into_place(temporary_dir, folder, readme)
    except OSError as error:
        problem = f"the sample cannot be written ({error.strerror or error})"
        raise OutputError(
            problem, "Choose a writable folder with a few MB of space", path=folder, code="E401"
        ) from error
    finally:
        shutil.rmtree(temporary_dir, ignore_errors=True)
    return folder


def find_or_write_sample() -> Path:
    """Return the sample in the cache folder; write it first if it is missing (about 20 seconds)."""
    folder = find_image_cache_dir().with_name("sample-v1")
    return folder if (folder / "README.txt").is_file() else write_sample_dataset(folder)


def _encode_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, comment=JPEG_COMMENT)
    return buffer.getvalue()


def _move_into_place(temporary_dir: Path, folder: Path, readme: str) -> None:
    try:
        if folder.is_dir():
            folder.rmdir()  # some systems cannot rename to an existing empty folder
        temporary_dir.rename(folder)
    except OSError:
        existing_readme = folder / "README.txt"
        if not existing_readme.is_file() or existing_readme.read_text() != readme:
            raise


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m fastcxr.data.synthetic.sample DIR")
    try:
        write_sample_dataset(sys.argv[1])
    except OutputError as error:
        sys.exit(str(error))
