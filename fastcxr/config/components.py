"""Options of a recipe that have options themselves: augmentation, and stages of training."""

from dataclasses import dataclass
from typing import Literal

from fastcxr.config.fields import document_options, option, reject_unknown_options, validate_fields
from fastcxr.errors import RecipeError


@document_options
@reject_unknown_options
@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Arguments of fastai's aug_transforms, and quarter_turns, which fastai does not have.

    The defaults are for chest radiographs, which are upright and lateralised.
    """

    mult: float = option(1.0, help="common factor on rotation, lighting and warp", minimum=0)
    do_flip: bool = option(False, help="random horizontal flips; flipped images show the heart on the wrong side")
    flip_vert: bool = option(False, help="with do_flip: random vertical flips too")
    quarter_turns: bool = option(
        True, help="with flip_vert: rotations by 90 degrees too; off: independent horizontal and vertical flips"
    )
    max_rotate: float = option(7.0, help="largest rotation [degrees]", minimum=0)
    min_zoom: float = option(0.95, help="smallest zoom factor", minimum=0.01)
    max_zoom: float = option(1.1, help="largest zoom factor", minimum=0.01)
    max_lighting: float = option(0.2, help="largest change of brightness and contrast", minimum=0, below=1)
    max_warp: float = option(0.1, help="largest perspective warp", minimum=0)
    p_affine: float = option(0.75, help="probability of each rotation, zoom and warp", minimum=0, below=1.0001)
    p_lighting: float = option(0.75, help="probability of each lighting change", minimum=0, below=1.0001)
    min_scale: float = option(
        1.0, help="smallest fraction of the image area kept by a random crop", minimum=0.01, below=1.0001
    )
    mode: Literal["bilinear", "nearest", "bicubic"] = option("bilinear", help="interpolation method")
    pad_mode: Literal["zeros", "border", "reflection"] = option("zeros", help="padding outside the image")
    align_corners: bool = option(True, help="alignment of grid corners with pixel centres, as align_corners of PyTorch")
    batch: bool = option(False, help="same random transformation for all images of a batch")

    def __post_init__(self):
        validate_fields(self)


@document_options
@reject_unknown_options
@dataclass(frozen=True, kw_only=True)
class Stage:
    """Options of one training stage: layer groups, learning rates, epochs."""

    name: str = option("all", help="name in history.csv and in the report")
    groups: int | Literal["all"] = option(
        "all", help="number of the last layer groups that are trained; 1 is the head", minimum=1
    )
    epochs: int | None = option(None, help="number of epochs; default: the recipe's", minimum=0)
    scale: float = option(1.0, help="factor on the recipe's learning rate", minimum=0)
    layer_lr_ratio: float | None = option(
        None,
        help="learning rate of the head divided by that of the stage's first group; default: the recipe's",
        minimum=1,
    )
    multiples: tuple[float, ...] | None = option(
        None,
        help="factor for each of the last groups, head last, instead of layer_lr_ratio; earlier groups use the first",
        minimum=0,
    )
    batch_norm: Literal["learn", "frozen"] = option(
        "learn", help="frozen keeps the batch-norm statistics of the weights, as frozen layers always do"
    )
    patience: int | None = option(
        None, help="epochs without improvement before the stage stops; default: the recipe's", minimum=0
    )

    def __post_init__(self):
        validate_fields(self)
        if self.multiples == ():
            raise RecipeError("multiples is empty", "Pass a factor for each of the last groups, or leave it out")
