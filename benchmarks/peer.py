"""What the benchmarks compare with: a learner and a prediction as plain fastai's own tutorials teach them."""

from pathlib import Path

import pandas as pd
from fastai.learner import Learner
from fastai.vision.all import ImageDataLoaders, Resize, aug_transforms, set_seed, vision_learner

from fastcxr import Recipe


def make_plain_learner(manifest: pd.DataFrame, recipe: Recipe, folder: str | Path) -> Learner:
    """ImageDataLoaders, Resize, aug_transforms and vision_learner, over the train and valid rows.

    `recipe.weights`: a file of weights that vision_learner cannot fetch here, or "none".
    """
    set_seed(recipe.seed, reproducible=True)
    table = manifest[manifest["split"] != "test"].assign(is_valid=lambda rows: rows["split"] == "valid")
    loaders = ImageDataLoaders.from_df(
        table, path="/", fn_col="file", label_col="label", valid_col="is_valid", bs=recipe.batch_size, num_workers=0,
        item_tfms=Resize(recipe.image_size), batch_tfms=aug_transforms(),
    )  # fmt: skip
    if recipe.weights == "none":
        return vision_learner(loaders, recipe.backbone, path=folder, pretrained=False)
    return vision_learner(loaders, recipe.backbone, path=folder, pretrained_cfg_overlay={"file": recipe.weights})
