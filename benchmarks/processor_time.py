"""Processor seconds of a training command by part, without a profiler, whose overhead depends on the part.

    python benchmarks/processor_time.py train mobilenetv2_100 --data DIR --strategy linear_probe --folds 5

The options are those of `fastcxr`. For times from an empty cache, set XDG_CACHE_HOME to an empty folder. Each part
contains the user and system time of all threads, without that of the parts inside it.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from typing import Any

# where each function is called from, and its part
PARTS = {
    "workflows.load.open_dataset_images": "decoding images",
    "training.feature_cache.fill_feature_cache": "network pass",
    "training.linear_probe.fit_probe": "fitting heads",
    "training.trainer.refit_head": "fitting heads",
    "training.trainer.fit_ood_detector": "fitting OOD detectors",
    "workflows.train_dir.write_features": "thumbnails of all images (features.npz)",
    "report.run_page.make_run_figures": "figures",
    "report.run_page.compute_run_metrics": "metrics with intervals",
    "workflows.result_dir.write_run_report": "pages, model cards and checklists",
    "workflows.train.validate_model_options": "network and its weights",
    "workflows.cross_validate.validate_model_options": "network and its weights",
    "workflows.train.make_learner": "network and its weights",
    "workflows.run_dir.measure_images": "gray values and files of the data page",
    "workflows.result_dir.write_thumbnails": "example images",
}


class ProcessorTimer:
    """Processor seconds by part."""

    def __init__(self):
        self.seconds: Counter[str] = Counter()
        self.part, self.since = "imports", 0.0

    def enter(self, part: str) -> str:
        """Count the time since the last call for the current part, continue with another one, and return the first."""
        now, earlier = time.process_time(), self.part
        self.seconds[earlier] += now - self.since
        self.part, self.since = part, now
        return earlier

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Count the time of the block for a part."""
        outer = self.enter(part)
        try:
            yield
        finally:
            self.enter(outer)

    def wrap(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """Return the function with its time counted for a part."""

        @wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.measure(part):
                return function(*args, **kwargs)

        return measured


def main() -> None:
    """Run the command and print its processor seconds by part."""
    timer = ProcessorTimer()
    for path, part in PARTS.items():
        module_name, name = f"fastcxr.{path}".rsplit(".", 1)
        module = import_module(module_name)
        setattr(module, name, timer.wrap(getattr(module, name), part))
    from fastcxr.cli.main import main as run_command

    try:
        with timer.measure("other"):
            run_command()
    finally:
        timer.enter("end")
        print("\n| part | processor seconds |\n|---|---|")
        for part, seconds in [*timer.seconds.most_common(), ("all", timer.seconds.total())]:
            print(f"| {part} | {seconds:.1f} |")


if __name__ == "__main__":
    sys.argv[0] = "fastcxr"
    main()
