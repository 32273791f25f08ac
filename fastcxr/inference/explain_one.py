"""Grad-CAM maps of single images, with one sanity check for all of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fastcxr.data.image_table import ImageInput, make_image_table
from fastcxr.inference.explain import Explainer, explain_rows, make_explainer
from fastcxr.inference.occlusion import ImageExplainer
from fastcxr.inference.saliency_maps import SaliencyMap, find_class_indices
from fastcxr.inference.torch_scorer import TorchScorer
from fastcxr.models.bundle import Classifier
from fastcxr.progress.base import Progress


class GradCamExplainer(ImageExplainer):
    """Grad-CAM maps of a classifier; the sanity check is made with the first map.

    Args:
        scorer: scorer of the classifier, as `predict` uses it.
        check_images: image files for the sanity check, such as the thumbnails of a run; by default the first image.
    """

    method, note = "grad_cam", "Grad-CAM (Selvaraju et al. 2017)."

    def __init__(self, scorer: TorchScorer, check_images: Sequence[Path] = ()):
        assert isinstance(scorer.model, Classifier), "Grad-CAM explains one network"
        self.scorer, self.classifier, self.check_images = scorer, scorer.model, tuple(check_images)
        self.explainer: Explainer | None = None

    def explain_image(self, image: ImageInput, label: str | None = None) -> SaliencyMap:
        """Return the map; see ImageExplainer. It states why it is withheld if the sanity check failed."""
        find_class_indices(self.scorer, [] if label is None else [label])
        table = make_image_table([image])
        explainer = self.explainer or self._make_explainer(image)
        rows = explain_rows(explainer, table, progress=Progress(), row_classes=None if label is None else [label])
        saliency_map = next(iter(rows))
        if explainer.check is not None:  # otherwise it is made with the next image
            self.explainer = explainer
            self.note = f"{type(self).note} {explainer.check.summary}"
        return saliency_map

    def _make_explainer(self, image: ImageInput) -> Explainer:
        images = self.check_images or [image]
        return replace(make_explainer(self.classifier, make_image_table(images)), scorer=self.scorer)
