"""Small encoders with each kind of features, to replace those of the table of chest encoders."""

from dataclasses import replace

from fastcxr.models.encoders import ENCODERS, Encoder

SIZE = 64  # pixels


def _make_tiny(name: str, **options) -> Encoder:
    return replace(ENCODERS[name], image_size=SIZE, options={**ENCODERS[name].options, **options})


VIT = {"patch_size": 8, "embed_dim": 48, "num_heads": 3, "depth": 3}
DINO = VIT | {"init_values": 1.0}  # of the layer scale: random weights have 1e-5, and the blocks hardly any effect
SWIN = {"embed_dim": 12, "num_heads": (1, 2, 2, 4), "depths": (1, 1, 1, 1), "window_size": 4}
TINY_ENCODERS = {
    "rad-dino": _make_tiny("rad-dino", **DINO),  # class token
    "chexfound": _make_tiny("chexfound", **DINO),  # class token and patch mean, with registers
    "eva-x-tiny": _make_tiny("eva-x-tiny", **VIT),  # norm of the patch mean
    "medical-mae-small": _make_tiny("medical-mae-small", **VIT),  # patch mean of the norm
    "medsiglip": _make_tiny("medsiglip", **VIT),  # attention pool
    "ark6": _make_tiny("ark6", **SWIN),
}
