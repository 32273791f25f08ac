"""What fastcxr survives: each fault is injected many times, and a table says what was lost.

    python benchmarks/faults.py [FAULT ...] [--share 1.0]

A row is a function that takes a folder and a count, and returns a Row; FAULTS lists them with their full counts.
--share 0.1 injects a tenth of each. Exits with 1 where anything was not survived.
"""

import argparse
import multiprocessing
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "tests" / name) for name in ("faults", "data", ".")]

from broken_runs import (  # noqa: E402  the toys lie in tests
    damaged_state,
    full_disk,
    killed,
    killed_while_writing,
    lost_workers,
    no_place,
    not_a_number,
    stopped,
    two_processes,
)
from row import Row  # noqa: E402

MOST_MEGABYTES = 300  # beyond what the process holds before the first image


def damaged_images(place: Path, count: int) -> Row:
    """Mutated images of every kind that the reader takes: a picture, or an ImageError of one line with a code."""
    from mutants import read_mutants

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        found = process.submit(read_mutants, count, 2026).result()
    refused = count - found["outcomes"]["read"] - sum(found["escaped"].values())
    within = found["megabytes"] < MOST_MEGABYTES
    words = f"{refused:,} images refused with a code; {found['megabytes']:.0f} MB at the peak (limit {MOST_MEGABYTES})"
    survived = count - sum(found["escaped"].values()) if within else 0
    return Row("damaged image", count, survived, words + _name(found["escaped"]))


def hostile_models(place: Path, count: int) -> Row:
    """Damaged and hostile model files: each refused in one line, no code run."""
    from hostile import draw_cases, write_good_model

    from fastcxr.errors import FastcxrError

    escaped, slowest = Counter(), (0.0, "")
    for case in draw_cases(write_good_model(place / "good"), place / "cases", count, seed=2026):
        start = time.process_time()
        try:
            case.open()
            escaped[f"{case.name} was taken"] += 1
        except FastcxrError as error:
            escaped[f"{case.name}: more than a line"] += "\n" in str(error)
        except Exception as error:  # what is counted here is whatever should never come
            escaped[f"{case.name}: {type(error).__name__}"] += 1
        slowest = max(slowest, (time.process_time() - start, case.name))
    ran = (place / "cases" / "marker").exists()
    code = "CODE RAN" if ran else "no code ran"
    words = f"nothing: {code}; at most {slowest[0]:.2f} s of processor time ({slowest[1].replace('_', ' ')})"
    return Row("hostile model file", count, 0 if ran else count - escaped.total(), words + _name(escaped))


def bad_files_in_a_folder(place: Path, count: int) -> Row:
    """One bad file among a thousand good ones, `count` times over, costs its own row of predictions and no other."""
    import numpy as np
    from hostile import write_good_model
    from mutants import draw_mutants
    from PIL import Image
    from toys import draw_toy

    from fastcxr.data.image_table import make_image_table
    from fastcxr.inference.predict import predict
    from fastcxr.models.bundle import load_model

    (place / "images").mkdir()
    for number in range(1000):
        Image.fromarray(draw_toy("haze", number)).save(place / "images" / f"{number:04d}.png")
    classifier = load_model(write_good_model(place / "run"))
    whole = predict(classifier, make_image_table([place / "images"]), splits=None).table
    (place / "mutants").mkdir()
    survived, bad = 0, b"<html>"
    victim = place / "images" / "0500.png"
    others = [name for name in whole["path"] if name != victim.name]
    for path in draw_mutants(place / "mutants", count, seed=7):
        victim.write_bytes(path.read_bytes() or bad)
        table = predict(classifier, make_image_table([place / "images"]), splits=None).table
        same = table.set_index("path").loc[others, "prob_a"].to_numpy() == whole.set_index("path").loc[others, "prob_a"]
        survived += bool(len(table) == 1000 and np.all(same) and (table["error"] != "").sum() <= 1)
    return Row("bad file among 1,000", count, survived, "its own row; 999 predictions are the same to the last bit")


def _name(escaped: dict[str, int]) -> str:
    told = [f"{name} ({times})" for name, times in escaped.items() if times]
    return f"; NOT SURVIVED: {', '.join(told)}" if told else ""


FAULTS: dict[str, tuple[Callable[[Path, int], Row], int]] = {
    "images": (damaged_images, 6000),
    "models": (hostile_models, 200),
    "folder": (bad_files_in_a_folder, 20),
    "kill": (partial(killed, workers=0), 25),
    "kill-workers": (partial(killed, workers=2), 25),
    "kill-writing": (killed_while_writing, 25),
    "state": (damaged_state, 24),
    "sigterm": (partial(stopped, number=signal.SIGTERM), 5),
    "sigint": (partial(stopped, number=signal.SIGINT), 5),
    "nan": (not_a_number, 10),
    "disk": (full_disk, 10),
    "worker": (lost_workers, 10),
    "two": (two_processes, 10),
    "place": (no_place, 10),
}


def main() -> int:
    """Inject what was asked for, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faults", nargs="*", choices=[*FAULTS, []], help="which; without any, all")
    parser.add_argument("--share", type=float, default=1.0, help="part of the full counts")
    words = parser.parse_args()
    print("| fault | injected | survived | lost |\n|---|---|---|---|")
    lost = 0
    for name in words.faults or FAULTS:
        inject, count = FAULTS[name]
        with (
            tempfile.TemporaryDirectory() as place,
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as own,
        ):
            # a process each: a fork of one in which torch has computed may hang
            row = own.submit(inject, Path(place), max(1, round(count * words.share))).result()
        print(f"| {row.fault} | {row.injected:,} | {row.survived:,} | {row.lost} |", flush=True)
        lost += row.injected - row.survived
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
