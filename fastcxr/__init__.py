"""Transfer learning on chest X-rays: datasets, training, evaluation and reports, based on fastai.

Steps of an experiment in Python: read_manifest, split_by_patient, make_loaders, make_learner, train, predict,
write_report.
"""

import os
import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastcxr.config.recipe import Augmentation, Recipe, Stage
from fastcxr.errors import FastcxrError
from fastcxr.version import VERSION as __version__

if "torch" not in sys.modules:  # torch reads the variable once, on import
    # by default OpenMP threads spin while they wait: on a busy machine everything takes ten times as long
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# huggingface_hub reads it once, on import: it would ask its server for a list of programs, and send torch's version
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from fastcxr.cli.study import study_main
    from fastcxr.data.image_table import make_image_table
    from fastcxr.data.imaging.read import read_image
    from fastcxr.data.manifest import describe_manifest, read_manifest
    from fastcxr.data.manifest_file import write_manifest
    from fastcxr.data.splits import select_fold, split_by_patient, split_into_folds
    from fastcxr.data.synthetic.sample import find_or_write_sample
    from fastcxr.export.exported_model import load_export
    from fastcxr.inference.explain import explain
    from fastcxr.inference.predict import predict
    from fastcxr.metrics.evaluate import evaluate_predictions
    from fastcxr.metrics.predictions import Predictions, read_predictions, write_predictions
    from fastcxr.models.bundle import load_model
    from fastcxr.report.displays import plot_calibration, plot_confusion, plot_roc
    from fastcxr.training.learner import make_learner
    from fastcxr.training.loaders import make_datablock, make_loaders
    from fastcxr.training.trainer import train
    from fastcxr.workflows.dicom_results import write_dicom_results
    from fastcxr.workflows.embed import embed
    from fastcxr.workflows.evaluate import evaluate
    from fastcxr.workflows.export import export_model
    from fastcxr.workflows.load_learner import load_learner_from_run
    from fastcxr.workflows.publish import push
    from fastcxr.workflows.pull import pull
    from fastcxr.workflows.train_dir import write_report
    from fastcxr.workflows.tune import tune

# module of each name; imported on first use, because torch and fastai take seconds to import
_MODULES = {
    "read_manifest": "fastcxr.data.manifest",
    "describe_manifest": "fastcxr.data.manifest",
    "write_manifest": "fastcxr.data.manifest_file",
    "make_image_table": "fastcxr.data.image_table",
    "read_image": "fastcxr.data.imaging.read",
    "find_or_write_sample": "fastcxr.data.synthetic.sample",
    "split_by_patient": "fastcxr.data.splits",
    "split_into_folds": "fastcxr.data.splits",
    "select_fold": "fastcxr.data.splits",
    "make_datablock": "fastcxr.training.loaders",
    "make_loaders": "fastcxr.training.loaders",
    "make_learner": "fastcxr.training.learner",
    "train": "fastcxr.training.trainer",
    "load_model": "fastcxr.models.bundle",
    "export_model": "fastcxr.workflows.export",
    "push": "fastcxr.workflows.publish",
    "pull": "fastcxr.workflows.pull",
    "load_export": "fastcxr.export.exported_model",
    "load_learner_from_run": "fastcxr.workflows.load_learner",
    "predict": "fastcxr.inference.predict",
    "explain": "fastcxr.inference.explain",
    "embed": "fastcxr.workflows.embed",
    "Predictions": "fastcxr.metrics.predictions",
    "read_predictions": "fastcxr.metrics.predictions",
    "write_predictions": "fastcxr.metrics.predictions",
    "evaluate_predictions": "fastcxr.metrics.evaluate",
    "evaluate": "fastcxr.workflows.evaluate",
    "plot_calibration": "fastcxr.report.displays",
    "plot_confusion": "fastcxr.report.displays",
    "plot_roc": "fastcxr.report.displays",
    "write_dicom_results": "fastcxr.workflows.dicom_results",
    "write_report": "fastcxr.workflows.train_dir",
    "tune": "fastcxr.workflows.tune",
    "study_main": "fastcxr.cli.study",
}

__all__ = [
    "Augmentation", "FastcxrError", "Predictions", "Recipe", "Stage", "__version__", "describe_manifest", "embed",
    "evaluate", "evaluate_predictions", "explain", "export_model", "find_or_write_sample", "load_export",
    "load_learner_from_run", "load_model", "make_datablock", "make_image_table", "make_learner", "make_loaders",
    "plot_calibration", "plot_confusion", "plot_roc", "predict", "pull", "push", "read_image", "read_manifest",
    "read_predictions", "select_fold", "split_by_patient", "split_into_folds", "study_main", "train", "tune",
    "write_dicom_results", "write_manifest", "write_predictions", "write_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'fastcxr' has no attribute {name!r}")
    with warnings.catch_warnings():  # fastai calls torch.jit.script when it is imported
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
