"""Transfer learning on chest X-rays: datasets, training, evaluation and reports, based on fastai.

Steps of an experiment in Python: read_manifest, split_by_patient, make_loaders, make_learner, train, predict,
write_report.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastcxr.config.recipe import Augmentation, Recipe, Stage
from fastcxr.version import VERSION as __version__

if "torch" not in sys.modules:  # torch reads the variable once, on import
    # by default OpenMP threads spin while they wait: on a busy machine everything takes ten times as long
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from fastcxr.cli.study import study_main
    from fastcxr.data.manifest import describe_manifest, read_manifest
    from fastcxr.data.splits import split_by_patient
    from fastcxr.inference.explain import explain
    from fastcxr.inference.predict import predict
    from fastcxr.models.bundle import load_model
    from fastcxr.report.displays import plot_calibration, plot_confusion, plot_roc
    from fastcxr.training.learner import make_learner
    from fastcxr.training.loaders import make_datablock, make_loaders
    from fastcxr.training.trainer import train
    from fastcxr.workflows.load_learner import load_learner_from_run
    from fastcxr.workflows.train_dir import write_report

# module of each name; imported on first use, because torch and fastai take seconds to import
_MODULES = {
    "read_manifest": "fastcxr.data.manifest",
    "describe_manifest": "fastcxr.data.manifest",
    "split_by_patient": "fastcxr.data.splits",
    "make_datablock": "fastcxr.training.loaders",
    "make_loaders": "fastcxr.training.loaders",
    "make_learner": "fastcxr.training.learner",
    "train": "fastcxr.training.trainer",
    "predict": "fastcxr.inference.predict",
    "load_model": "fastcxr.models.bundle",
    "load_learner_from_run": "fastcxr.workflows.load_learner",
    "explain": "fastcxr.inference.explain",
    "plot_calibration": "fastcxr.report.displays",
    "plot_confusion": "fastcxr.report.displays",
    "plot_roc": "fastcxr.report.displays",
    "write_report": "fastcxr.workflows.train_dir",
    "study_main": "fastcxr.cli.study",
}

__all__ = [
    "Augmentation", "Recipe", "Stage", "__version__", "describe_manifest", "explain", "load_learner_from_run",
    "load_model", "make_datablock", "make_learner", "make_loaders", "plot_calibration", "plot_confusion", "plot_roc",
    "predict", "read_manifest", "split_by_patient", "study_main", "train", "write_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'fastcxr' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
