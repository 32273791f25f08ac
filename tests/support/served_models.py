"""A server of a scorer that needs no network: the probability of `bright` is the mean gray level of the image."""

import threading
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from fastcxr.config.tasks import SINGLE_LABEL
from fastcxr.data.bit_depth import BitDepths
from fastcxr.inference.occlusion import OcclusionExplainer
from fastcxr.inference.scores import Scorer, Scores
from fastcxr.serve.app import make_app
from fastcxr.serve.options import ServeOptions
from fastcxr.serve.served_model import ServedModel

ORIGIN = "http://127.0.0.1:8000"
NOTICE = {"level": "critical", "title": "Image-level split", "text": "Patients may be in two splits."}


class GrayScorer(Scorer):
    """Two classes, of which the probability of the second is the mean gray level; an image above 0.9 is OOD."""

    labels, task, image_size, batch_size = ("dark", "bright"), SINGLE_LABEL, 32, 8
    thresholds = {"thresholds": {"dark": {"threshold": 0.5}, "bright": {"threshold": 0.5}}, "uncertain_below": 0.55}
    bit_depths, has_ood_detector, dtype_and_device = BitDepths(), True, "float64 on cpu"

    def __init__(self):
        self.n_calls, self.may_score = 0, threading.Event()
        self.may_score.set()

    def score(self, images: np.ndarray) -> Scores:
        """Return the scores once `may_score` is set."""
        assert self.may_score.wait(30)
        self.n_calls += 1
        mean = images.reshape(len(images), -1).mean(axis=1) / 255
        return Scores(np.stack([1 - mean, mean], axis=1), mean / 0.9)


def make_served_model(**values) -> ServedModel:
    """Return a model to serve; `values`: in place of the usual ones."""
    scorer = GrayScorer()
    usual = {"name": "gray", "scorer": scorer, "notices": [NOTICE], "explainer": OcclusionExplainer(scorer)}
    return ServedModel(**usual | {"model_card": "# Model card: gray"} | values)


def make_client(model: ServedModel | None = None, **options) -> TestClient:
    """Return a client of a server with these options."""
    app = make_app(model or make_served_model(), ServeOptions(**options))
    return TestClient(app, base_url=ORIGIN, raise_server_exceptions=True)


def make_png_bytes(level: int = 128, size: int = 64) -> bytes:
    """Return a square image as PNG: one half is black, the other one has a gray level."""
    pixels = np.zeros((size, size), np.uint8)
    pixels[:, size // 2 :] = level
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_fields(*files: Path | tuple[str, bytes]) -> list:
    """Return the parts of a request, for httpx."""
    pairs = [(file.name, file.read_bytes()) if isinstance(file, Path) else file for file in files]
    return [("files", pair) for pair in pairs]
