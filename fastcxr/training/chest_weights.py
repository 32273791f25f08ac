"""Weights that learned from chest radiographs, in the layouts of their makers, under the names that networks use here.

CheXNet: the public checkpoints hold torchvision's DenseNet121 of 2017, wrapped twice (`module.densenet121.`), with
names that have since lost a dot (`norm.1`, `conv.1`) and a classifier inside a Sequential.
torchxrayvision: an optional extra that fetches and reads its own files; one gray channel from -1024 to 1024.
"""

import contextlib
import io
import logging
import re
import warnings
from difflib import get_close_matches

import torch

from fastcxr.errors import RecipeError, WeightsError

log = logging.getLogger("fastcxr")

XRV = "xrv:"  # before the name of weights of torchxrayvision
XRV_MEAN, XRV_STD = (0.5,), (1 / 2048,)  # of 0 to 1: black becomes -1024, white 1024
XRV_DENSENETS = ("all", "nih", "pc", "chex", "rsna", "mimic_nb", "mimic_ch")
# name of the weights: the network they belong to, and the side of the images that they learned from
XRV_WEIGHTS = {f"densenet121-res224-{data}": ("densenet121", 224) for data in XRV_DENSENETS} | {
    "resnet50-res512-all": ("resnet50", 512)
}
LEGACY_DOT = re.compile(r"\b(norm|conv)\.([12])\.")


def rename_chexnet(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under the names of today, if these are CheXNet's; else the state as it is."""
    is_old = any(key.startswith("densenet121.") or LEGACY_DOT.search(key) for key in state)
    if not is_old or not any(".denselayer1." in key for key in state):
        return state
    renamed = {_modern(key): value for key, value in state.items()}
    log.info("these weights are in CheXNet's layout: %d names brought up to date", len(set(state) - set(renamed)))
    return renamed


def _modern(key: str) -> str:
    key = key.removeprefix("densenet121.").replace("classifier.0.", "classifier.")
    return LEGACY_DOT.sub(r"\1\2.", key)


def find_xrv(weights: str) -> tuple[str, int]:
    """Network and image size of xrv:NAME. Raises RecipeError for a name that torchxrayvision does not have."""
    name = weights.removeprefix(XRV)
    if name in XRV_WEIGHTS:
        return XRV_WEIGHTS[name]
    close = get_close_matches(name, XRV_WEIGHTS, n=1)
    fix = f"Did you mean 'xrv:{close[0]}'?" if close else f"Choose from {', '.join(f'xrv:{n}' for n in XRV_WEIGHTS)}"
    raise RecipeError(f"torchxrayvision has no weights called {name!r}", fix)


def read_xrv(weights: str) -> dict[str, torch.Tensor]:
    """The tensors of xrv:NAME under the names of timm's network.

    torchxrayvision downloads the file once and loads it with torch.load, which unpickles it and can run code in it: use
    trusted sources only.
    """
    name = weights.removeprefix(XRV)
    models = _import_xrv()
    try:
        # it tells standard output about its downloads, where only the path of the report belongs
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            model = models.get_model(name)
    except Exception as error:  # whatever its downloader and its unpickling may raise, it is these weights' fault
        raise WeightsError(
            f"torchxrayvision could not give {name} ({type(error).__name__})",
            f"Fetch {models.model_urls[name]['weights_url']} into ~/.torchxrayvision/models_data",
            code="E201",
        ) from error
    state = {key.removeprefix("model."): value for key, value in model.state_dict().items()}
    state.pop("op_threshs", None)  # its thresholds for 18 findings, no part of the network
    return state


def _import_xrv():
    try:
        with warnings.catch_warnings():  # on import it silences every warning of the process
            from torchxrayvision import models
    except ImportError as error:
        raise WeightsError(
            f"xrv: weights need torchxrayvision ({error})", "Run `pip install 'fastcxr[xrv]'`", code="E201"
        ) from error
    return models
