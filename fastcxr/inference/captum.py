"""Heat maps by captum's methods, an optional extra: slower than Grad-CAM, and for any network."""

import importlib
from typing import Any

import torch
from torch import nn

from fastcxr.errors import ModelError

STEPS, AT_ONCE = 32, 16  # points on the path of integrated gradients; images that the network sees at once
WINDOWS = 14  # of occlusion, along each side


def integrated_gradients(network: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """What each pixel adds to the logit of a class on the way from black, shape (n, size, size).

    Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks". `images`: (n, channels, size, size).
    """
    method = import_captum("integrated_gradients").IntegratedGradients(network)
    black = images.amin(dim=(2, 3), keepdim=True).expand_as(images)
    found = method.attribute(images, black, target=classes, n_steps=STEPS, internal_batch_size=AT_ONCE)
    return found.detach().sum(dim=1).float().relu()


def occlusion(network: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """How much of the logit of a class is lost where a window turns gray, shape (n, size, size).

    Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks". `images`: (n, channels, size, size).
    """
    window = max(1, images.shape[-1] // WINDOWS)
    shape = (images.shape[1], 2 * window, 2 * window)
    gray = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    method = import_captum("occlusion").Occlusion(network)
    with torch.no_grad():
        found = method.attribute(
            images, shape, strides=(images.shape[1], window, window), baselines=gray, target=classes
        )
    return found.sum(dim=1).float().relu()


def import_captum(method: str) -> Any:
    """captum.attr. Raises ModelError, which says how to get it, where it is not installed."""
    try:
        return importlib.import_module("captum.attr")
    except ImportError as error:
        raise ModelError(
            f"--method {method} needs captum ({error})", "Run `pip install 'fastcxr[explain]'`", code="E302"
        ) from error
