"""Saliency maps by captum's methods, an optional extra: slower than Grad-CAM, and for any network."""

import importlib
from typing import Any

import torch
from torch import nn

from fastcxr.errors import ModelError

N_PATH_STEPS, INTERNAL_BATCH_SIZE = 32, 16  # of integrated gradients: points on the path, images per forward pass
N_WINDOWS_PER_SIDE = 14  # of occlusion


def integrated_gradients(network: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the contribution of each pixel to the class logit relative to a black image, shape (n, size, size).

    Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks". `images`: (n, channels, size, size).
    """
    method = import_captum("integrated_gradients").IntegratedGradients(network)
    baseline = images.amin(dim=(2, 3), keepdim=True).expand_as(images)
    attributions = method.attribute(
        images, baseline, target=classes, n_steps=N_PATH_STEPS, internal_batch_size=INTERNAL_BATCH_SIZE
    )
    return attributions.detach().sum(dim=1).float().relu()


def occlusion(network: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the decrease of the class logit when a gray window covers each pixel, shape (n, size, size).

    Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks". `images`: (n, channels, size, size).
    """
    stride = max(1, images.shape[-1] // N_WINDOWS_PER_SIDE)
    window_shape = (images.shape[1], 2 * stride, 2 * stride)
    baseline = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    method = import_captum("occlusion").Occlusion(network)
    with torch.no_grad():
        attributions = method.attribute(
            images, window_shape, strides=(images.shape[1], stride, stride), baselines=baseline, target=classes
        )
    return attributions.sum(dim=1).float().relu()


def import_captum(method: str) -> Any:
    """Return the module captum.attr. Raises ModelError if captum is not installed."""
    try:
        return importlib.import_module("captum.attr")
    except ImportError as error:
        problem = f"`method={method!r}` requires captum ({error})"
        raise ModelError(problem, "Run `pip install 'fastcxr[explain]'`", code="E203") from error
