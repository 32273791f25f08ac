"""A network of four thousand weights, registered in timm on import, for the runs in tests/fixtures."""

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet

NAME = "tiny_test_resnet"
PIXELS = {"input_size": (3, 64, 64), "pool_size": (2, 2), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
default_cfgs = generate_default_cfgs({NAME: PIXELS | {"num_classes": 3, "first_conv": "conv1", "classifier": "fc"}})


@register_model
def tiny_test_resnet(pretrained: bool = False, **changes) -> ResNet:
    """A residual network of four blocks with four to eight channels."""
    plan = {"block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (4, 4, 8, 8), "stem_width": 4, "stem_type": "deep"}
    return build_model_with_cfg(ResNet, NAME, pretrained, **(plan | changes))
