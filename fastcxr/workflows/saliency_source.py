"""Saliency maps of the most probable class or finding of predicted images, by the method that fits the model."""

from collections.abc import Callable, Iterable, Iterator

import pandas as pd

from fastcxr.errors import ModelError
from fastcxr.export.exported_model import ExportedModel
from fastcxr.inference.occlusion import OcclusionExplainer
from fastcxr.inference.saliency_maps import SaliencyMap
from fastcxr.inference.scores import Scorer
from fastcxr.metrics.predictions import Predictions
from fastcxr.progress.base import Progress

MakeMaps = Callable[[pd.DataFrame, Predictions], Iterable[SaliencyMap]]


def make_map_source(scorer: Scorer, table: pd.DataFrame) -> tuple[str, MakeMaps]:
    """Return the name of an attribution method, and a function that yields one map per row of a block.

    Grad-CAM for a run with one model that PyTorch computes, after its sanity check; else occlusion.

    Raises ModelError if the maps fail the sanity check.
    """
    if not isinstance(scorer, ExportedModel) and (maps := _make_grad_cam(scorer, table)):
        return "grad_cam", maps
    explainer = OcclusionExplainer(scorer)

    def make_occlusion_maps(rows: pd.DataFrame, block: Predictions) -> Iterator[SaliencyMap]:
        for file, error, probability in zip(rows["file"], block.table["error"], block.probability, strict=True):
            if error:
                yield SaliencyMap(source="", path="", error=str(error))
            else:
                yield explainer.explain_image(file, scorer.labels[int(probability.argmax())])

    return "occlusion", make_occlusion_maps


def _make_grad_cam(scorer: Scorer, table: pd.DataFrame) -> MakeMaps | None:
    from fastcxr.inference.explain import explain_rows, make_explainer  # torch takes seconds to import
    from fastcxr.inference.openvino import OpenVINOFeatureExtractor, OpenVINONetwork
    from fastcxr.inference.torch_scorer import TorchScorer
    from fastcxr.models.bundle import Classifier

    if not isinstance(scorer, TorchScorer) or not isinstance(scorer.model, Classifier):
        return None
    if isinstance(scorer.model.network, OpenVINONetwork | OpenVINOFeatureExtractor):  # it computes no gradients
        return None
    explainer = make_explainer(scorer.model, table)
    if explainer.check and explainer.failure_reason:
        problem = f"no saliency map can be shown: {explainer.failure_reason}"
        raise ModelError(problem, "Leave `dicom_sc` out", code="E725")
    return lambda rows, block: explain_rows(explainer, rows, progress=Progress(), predictions=block)
