"""What the benchmarks compare with: a learner as plain fastai's own tutorials teach it; and a process for each road.

A road has a process of its own, because fastcxr changes how the C library keeps memory, which would help its peer.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from fastai.learner import Learner
from fastai.vision.all import ImageDataLoaders, Resize, aug_transforms, set_seed, vision_learner

from fastcxr import Recipe


def make_plain_learner(
    manifest: pd.DataFrame, recipe: Recipe, folder: str | Path, workers: int | None = None
) -> Learner:
    """ImageDataLoaders, Resize, aug_transforms and vision_learner, over the train and valid rows.

    `recipe.weights`: a file of weights that vision_learner cannot fetch here, or "none". `workers`: processes that
    read; without it fastai's own choice, one a core.
    """
    set_seed(recipe.seed, reproducible=True)
    table = manifest[manifest["split"] != "test"].assign(is_valid=lambda rows: rows["split"] == "valid")
    loaders = ImageDataLoaders.from_df(
        table, path="/", fn_col="file", label_col="label", valid_col="is_valid", bs=recipe.batch_size,
        num_workers=workers,
        item_tfms=Resize(recipe.image_size), batch_tfms=aug_transforms(),
    )  # fmt: skip
    if recipe.weights == "none":
        return vision_learner(loaders, recipe.backbone, path=folder, pretrained=False)
    return vision_learner(loaders, recipe.backbone, path=folder, pretrained_cfg_overlay={"file": recipe.weights})


def run_alone(road: str, **options: Any) -> dict[str, Any]:
    """What this very script prints last, as JSON, when it is called again with `--road` and further options."""
    further = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-W", "ignore", *sys.argv, "--road", road, *further]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
