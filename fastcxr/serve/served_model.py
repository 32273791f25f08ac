"""The model of a server: its description, its predictions and its saliency maps, as JSON documents."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastcxr.data.imaging.memory import FileInMemory
from fastcxr.errors import RecipeError
from fastcxr.inference.occlusion import ImageExplainer
from fastcxr.inference.predict import predict
from fastcxr.inference.saliency_maps import make_pair_uri
from fastcxr.inference.scores import Scorer, list_shown_thresholds
from fastcxr.metrics.decisions import apply_thresholds, count_decided_images, make_prediction_rows
from fastcxr.metrics.predictions import IN_DISTRIBUTION_COLUMN, OOD_SCORE_COLUMN
from fastcxr.progress.base import Progress
from fastcxr.serve.options import ServeOptions
from fastcxr.serve.responses import RESEARCH_WARNING, RequestError
from fastcxr.version import VERSION

MIN_SHOWN_PIXELS = 224  # width of the image and of its saliency map


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model that is ready to predict, with the texts of its page.

    Attributes:
        name: name of the run or export.
        scorer: the model.
        notices: notices with the keys level, title and text; those of the level critical are in each answer.
        model_card: Markdown text, or an empty text.
        explainer: makes the saliency maps; None: the server has none.
    """

    name: str
    scorer: Scorer
    notices: Sequence[Mapping[str, str]] = ()
    model_card: str = ""
    explainer: ImageExplainer | None = None

    @property
    def critical_titles(self) -> list[str]:
        """Titles of the critical notices."""
        return [notice["title"] for notice in self.notices if notice["level"] == "critical"]

    def warm_up(self) -> None:
        """Predict a blank image: the first call of a network takes longer than the others."""
        size = self.scorer.image_size
        self.scorer.score(np.zeros((1, size, size), np.uint8))

    def describe(self, options: ServeOptions) -> dict[str, Any]:
        """Return the content of model.json."""
        scorer = self.scorer
        limits = {name: asdict(options)[name] for name in LIMIT_NAMES}
        return {
            "name": self.name, "task": scorer.task, "labels": list(scorer.labels),
            "thresholds": list_shown_thresholds(scorer), "uncertain_below": scorer.thresholds.get("uncertain_below"),
            "image_size": scorer.image_size, "has_ood_detector": scorer.has_ood_detector,
            "notices": [dict(notice) for notice in self.notices], "model_card": self.model_card,
            "saliency": self.explainer and self.explainer.method, "version": VERSION, "warning": RESEARCH_WARNING,
            "limits": limits,
        }  # fmt: skip

    def predict(self, files: Sequence[FileInMemory]) -> dict[str, Any]:
        """Return the rows of `predict --json` in the order of the files, and the numbers of images."""
        predicted = predict(self.scorer, files, splits=None, progress=Progress(), log_warnings=False)
        decided = apply_thresholds(predicted, self.scorer.thresholds)
        numbers = count_decided_images(decided)
        header = {"warning": RESEARCH_WARNING, "critical": self.critical_titles}
        return header | numbers | {"predictions": make_prediction_rows(decided)}

    def explain(self, file: FileInMemory, label: str | None) -> dict[str, Any]:
        """Return the image beside its saliency map, of the most probable class if `label` is None.

        Raises RequestError for a class that the model does not have, and if the server makes no maps.
        """
        explainer = self.explainer
        if explainer is None:
            raise RequestError(404, "this server makes no saliency maps", "Leave them out", code="E508")
        try:
            saliency_map = explainer.explain_image(file, label)
        except RecipeError as error:
            raise RequestError(400, error.problem, error.fix, code="E504") from error
        uri, image, normalized = "", saliency_map.image, saliency_map.normalized
        if image is not None and normalized is not None:
            uri = make_pair_uri(image, normalized, max(MIN_SHOWN_PIXELS, len(image)))
        ood_score = None if np.isnan(saliency_map.ood_score) else float(saliency_map.ood_score)
        verdict = {OOD_SCORE_COLUMN: ood_score, IN_DISTRIBUTION_COLUMN: saliency_map.in_distribution}
        return {
            "warning": RESEARCH_WARNING,
            "critical": self.critical_titles,
            **(verdict if self.scorer.has_ood_detector else {}),
            "label": saliency_map.class_name,
            "probability": None if saliency_map.error else saliency_map.probability,
            "method": explainer.method,
            "note": saliency_map.note or explainer.note,
            "image": uri,
        }


LIMIT_NAMES = ("max_files", "max_file_bytes", "max_request_bytes", "max_waiting")
