"""Networks of the encoders for chest radiographs: those of timm, with the features that each encoder provides."""

from typing import Any

import timm
import torch
from timm.layers.mlp import SwiGLUPacked
from torch import nn

from fastcxr.models.encoders import Encoder

N_DEPTHS = 4  # depths of a transformer whose tokens a linear probe uses, evenly spaced; the last is the last block


class ClassAndPatchMean(nn.Module):
    """Class token and mean of the patch tokens, side by side (the features of DINOv2's linear evaluation)."""

    def __init__(self, n_prefix_tokens: int):
        super().__init__()
        self.n_prefix_tokens = n_prefix_tokens

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return features, shape (n, 2 * width), of tokens, shape (n, tokens, width), the class token first."""
        return torch.cat([tokens[:, 0], tokens[:, self.n_prefix_tokens :].mean(dim=1)], dim=1)


def make_encoder_options(encoder: Encoder, image_size: int) -> dict[str, Any]:
    """Return the arguments of timm.create_model for an encoder, without the number of classes."""
    options = dict(encoder.options)
    if encoder.has_swiglu:
        options |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
    if encoder.is_transformer:
        options["img_size"] = image_size
        if "ref_feat_shape" in options:  # rotary position embeddings keep the scale of pretraining
            options["ref_feat_shape"] = (encoder.image_size // options["patch_size"],) * 2
    return options


def make_encoder_network(encoder: Encoder, n_classes: int, image_size: int) -> nn.Module:
    """Return timm's network of an encoder with random weights and a linear head for `n_classes` classes.

    The features of its stages are means of the patch tokens, without class and register tokens.

    Raises what timm raises for an image size that the network cannot have.
    """
    options = make_encoder_options(encoder, image_size)
    network: Any = timm.create_model(encoder.architecture, num_classes=n_classes, **options)
    if encoder.features == "both":
        network.global_pool, network.fc_norm = "", ClassAndPatchMean(network.num_prefix_tokens)
        network.num_features = network.head_hidden_size = 2 * network.embed_dim
        network.head = nn.Linear(network.num_features, n_classes)
    network.n_unpooled_tokens = getattr(network, "num_prefix_tokens", 0)  # read by heads.find_n_unpooled_tokens
    if hasattr(network, "blocks"):
        n_blocks = len(network.blocks)
        last_blocks = sorted({-(-n_blocks * part // N_DEPTHS) - 1 for part in range(1, N_DEPTHS + 1)})
        network.feature_info = [network.feature_info[block] for block in last_blocks]
    return network
