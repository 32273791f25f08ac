"""Faults injected into images, model files, folders and training runs: how often fastcxr survives, and what is lost.

    python benchmarks/faults.py [FAULT ...] [--share 1.0]

Each row of the table is one fault, injected as often as FAULTS states, times --share. Exits with 1 if an injection was
not survived. Faults of training runs are in interrupted_runs.py.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: the same as `import fastcxr` sets
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import interrupted_runs
import numpy as np
from common import make_parser
from hostile_files import draw_cases, write_good_model
from interrupted_runs import Row
from mutated_files import draw_mutants, read_mutants
from PIL import Image
from toy_images import draw_toy

from fastcxr.data.image_table import make_image_table
from fastcxr.errors import FastcxrError
from fastcxr.inference.predict import predict
from fastcxr.models.bundle import load_model

MEMORY_LIMIT_MB = 300  # above the memory of the process before the first image
N_INTACT_IMAGES = 999


def damage_images(folder: Path, count: int) -> Row:
    """Read damaged images of all supported types; survived: an image, or an ImageError of one line with a code."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        found = process.submit(read_mutants, count, 2026).result()
    n_escaped = sum(found["escaped"].values())
    n_rejected = count - found["outcomes"].get("read", 0) - n_escaped
    memory = f"peak memory {found['megabytes']:.0f} MB (limit {MEMORY_LIMIT_MB})"
    survived = count - n_escaped if found["megabytes"] < MEMORY_LIMIT_MB else 0
    lost = f"{n_rejected:,} images rejected with a code; {memory}{list_failures(found['escaped'])}"
    return Row("damaged image", count, survived, lost)


def load_hostile_models(folder: Path, count: int) -> Row:
    """Load damaged and hostile model files; survived: rejected with an error of one line, and no code ran."""
    escaped, slowest = Counter(), (0.0, "")
    for case in draw_cases(write_good_model(folder / "good"), folder / "cases", count, seed=2026):
        started = time.process_time()
        try:
            case.open()
            escaped[f"{case.name} was loaded"] += 1
        except FastcxrError as error:
            escaped[f"{case.name}: more than one line"] += "\n" in str(error)
        except Exception as error:  # other exceptions are counted as failures
            escaped[f"{case.name}: {type(error).__name__}"] += 1
        slowest = max(slowest, (time.process_time() - started, case.name))
    has_code_run = (folder / "cases" / "marker").exists()
    seconds = f"at most {slowest[0]:.2f} s of processor time ({slowest[1].replace('_', ' ')})"
    lost = f"nothing: {'CODE RAN' if has_code_run else 'no code ran'}; {seconds}{list_failures(escaped)}"
    return Row("hostile model file", count, 0 if has_code_run else count - escaped.total(), lost)


def predict_with_unreadable_file(folder: Path, count: int) -> Row:
    """Predict a folder with one damaged file; survived: the predictions of all other files are bit-identical."""
    (folder / "images").mkdir()
    damaged = folder / "images" / "damaged.png"
    for number in range(N_INTACT_IMAGES):
        Image.fromarray(draw_toy("haze", number)).save(folder / "images" / f"{number:04d}.png")
    Image.fromarray(draw_toy("haze", N_INTACT_IMAGES)).save(damaged)
    classifier = load_model(write_good_model(folder / "run"))

    def predict_images() -> tuple[np.ndarray, int]:
        table = predict(classifier, make_image_table([folder / "images"]), splits=None).table.set_index("path")
        return table["prob_a"].drop(damaged.name).to_numpy(), (table["error"] != "").sum()

    expected, survived = predict_images()[0], 0
    (folder / "mutants").mkdir()
    for path in draw_mutants(folder / "mutants", count, seed=7):
        damaged.write_bytes(path.read_bytes() or b"<html>")
        probability, n_errors = predict_images()
        survived += np.array_equal(probability, expected) and n_errors <= 1
    lost = f"one row; {N_INTACT_IMAGES} predictions are bit-identical"
    return Row(f"unreadable file among {N_INTACT_IMAGES + 1:,}", count, int(survived), lost)


def list_failures(escaped: dict[str, int]) -> str:
    names = [f"{name} ({times})" for name, times in escaped.items() if times]
    return f"; NOT SURVIVED: {', '.join(names)}" if names else ""


FAULTS: dict[str, tuple[Callable[[Path, int], Row], int]] = {
    "images": (damage_images, 6000),
    "models": (load_hostile_models, 200),
    "folder": (predict_with_unreadable_file, 20),
    "kill": (partial(interrupted_runs.kill_during_training, workers=0), 25),
    "kill-workers": (partial(interrupted_runs.kill_during_training, workers=2), 25),
    "kill-writing": (interrupted_runs.kill_during_write, 25),
    "state": (interrupted_runs.damage_checkpoint, 24),
    "sigterm": (partial(interrupted_runs.stop_with_signal, number=signal.SIGTERM), 5),
    "sigint": (partial(interrupted_runs.stop_with_signal, number=signal.SIGINT), 5),
    "nan": (interrupted_runs.inject_nan_loss, 10),
    "disk": (interrupted_runs.fill_disk, 10),
    "worker": (interrupted_runs.kill_loader_worker, 10),
    "two": (interrupted_runs.start_second_process, 10),
    "place": (interrupted_runs.use_unwritable_folder, 10),
}


def main() -> int:
    """Inject the faults, print the table, and return the exit code."""
    parser = make_parser(__doc__)
    parser.add_argument("faults", nargs="*", choices=[*FAULTS, []], metavar="FAULT", help="without any, all")
    parser.add_argument("--share", type=float, default=1.0, help="fraction of the full counts")
    given = parser.parse_args()
    print("| fault | injected | survived | lost |\n|---|---|---|---|")
    os.environ["PYTHONWARNINGS"] = "ignore"  # in the processes of the runs
    n_failed = 0
    for name in given.faults or FAULTS:
        inject, count = FAULTS[name]
        with tempfile.TemporaryDirectory() as folder:
            row = inject(Path(folder), max(1, round(count * given.share)))
        print(f"| {row.fault} | {row.injected:,} | {row.survived:,} | {row.lost} |", flush=True)
        n_failed += row.injected - row.survived
    return int(n_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
