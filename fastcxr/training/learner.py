"""From loaders and a recipe to a plain fastai Learner: lr_find, fit_one_cycle, show_results and the rest work on it."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import fastai.callback.schedule  # noqa: F401  puts lr_find and fit_one_cycle on Learner
import numpy as np
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.metrics import AccumMetric, accuracy, top_k_accuracy
from sklearn.metrics import roc_auc_score

from fastcxr.config.recipe import Recipe
from fastcxr.models.backbones import describe_backbone, describe_weights_choice, find_backbone, make_network
from fastcxr.models.heads import head_config
from fastcxr.models.param_groups import find_frozen, layer_groups
from fastcxr.models.precision import autocast, keep_malloc_arenas, keep_stem_fp32, resolve_precision
from fastcxr.models.state import LearnerState
from fastcxr.training.losses import WeightedAvgLoss, make_loss
from fastcxr.training.optimizers import find_optimizer, find_weight_decay

log = logging.getLogger("fastcxr")


class FrozenModulesEval(Callback):
    """Frozen layers compute as they do in evaluation: batch norm keeps its statistics, and nothing is dropped."""

    order = 60  # after fastai has put the whole network into training mode

    def before_train(self) -> None:
        """Put every frozen module into evaluation mode."""
        for module in find_frozen(self.model):
            module.training = False


class Bf16Autocast(Callback):
    """The network computes in bfloat16, weights and loss stay in float32; fastai's own is made for CUDA alone."""

    order = ChannelsLast.order + 1
    autocast_context = None

    def before_fit(self) -> None:
        self.exit_autocast()  # a batch of the last fit may have broken off before its end

    def before_batch(self) -> None:
        self.autocast_context = autocast("bf16", self.dls.device)
        self.autocast_context.__enter__()

    def after_pred(self) -> None:
        self.learn.pred = self.pred.float()

    def after_loss(self) -> None:
        self.exit_autocast()

    def after_cancel_batch(self) -> None:
        self.exit_autocast()

    def exit_autocast(self) -> None:
        """Back to full precision, once."""
        if self.autocast_context is not None:
            self.autocast_context.__exit__(None, None, None)
        self.autocast_context = None


@contextmanager
def restore_full_precision(learner: Learner) -> Iterator[None]:
    """However the block ends, also in the middle of a batch, everything after it computes in full precision again."""
    try:
        yield
    finally:
        for callback in learner.cbs:
            if isinstance(callback, Bf16Autocast):
                callback.exit_autocast()


def make_learner(loaders: DataLoaders, recipe: Recipe) -> Learner:
    """A fastai Learner: the backbone with a new head, its layer groups, the recipe's loss and optimizer.

    Batch norm of frozen layers stays frozen, so a frozen body costs no backward pass.
    Raises RecipeError for an unknown backbone, WeightsError for weights out of reach.
    """
    backbone = find_backbone(recipe.backbone, recipe.weights)
    weights_choice = describe_weights_choice(recipe.backbone, backbone, recipe.weights)
    if weights_choice:
        log.info(weights_choice)
    torch.manual_seed(recipe.seed)  # the head starts the same whatever ran before
    network = make_network(backbone, len(loaders.vocab), recipe.weights, recipe.image_size, head_config(recipe))
    precision = resolve_precision(recipe.precision, loaders.device)
    if loaders.device.type == "cpu":
        keep_malloc_arenas()
        if precision == "bf16":
            keep_stem_fp32(network, loaders.fastcxr.input_spec)
    # lr_find saves the weights for a while; a private folder keeps that off everything a person owns
    temporary_dir = tempfile.TemporaryDirectory(prefix="fastcxr-")
    learner = Learner(
        loaders,
        network.to(loaders.device),
        loss_func=make_loss(recipe, count_labels(loaders)),
        opt_func=find_optimizer(recipe.optimizer),
        splitter=layer_groups,
        metrics=make_metrics(len(loaders.vocab)),
        cbs=[FrozenModulesEval(), ChannelsLast(), *([Bf16Autocast()] if precision == "bf16" else [])],
        lr=recipe.learning_rate if recipe.learning_rate != "find" else 1e-3,
        wd=find_weight_decay(recipe),
        train_bn=False,
        path=temporary_dir.name,
    )
    learner.recorder.loss = WeightedAvgLoss()
    learner.loss_func.to(loaders.device)  # with its class weights; a loss may be asked before fastai's first fit
    backbone_record = describe_backbone(backbone, recipe.weights, network)
    learner.fastcxr = LearnerState(precision=precision, backbone=backbone_record, temporary_dir=temporary_dir)
    return learner


def count_labels(loaders: DataLoaders) -> np.ndarray:
    """Training images of each class, in the order of `loaders.vocab`; shape (k,)."""
    table = loaders.train.items
    return table["label"].value_counts().reindex(list(loaders.vocab), fill_value=0).to_numpy()


def make_metrics(n_classes: int) -> list:
    """What every epoch reports: accuracy, macro AUROC and, beyond two classes, top-2 accuracy."""
    auroc = AccumMetric(compute_auroc_from_logits, name="auroc", flatten=False)
    top2 = [make_partial_metric("top2_accuracy", top_k_accuracy, k=2)] if n_classes > 2 else []
    return [accuracy, auroc, *top2]


def make_partial_metric(name: str, metric, **options):
    """A metric with options set, under a name that history.csv can carry."""

    def compute_metric(predictions, truth):
        return metric(predictions, truth, **options)

    compute_metric.__name__ = name
    return compute_metric


def compute_auroc_from_logits(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """Macro AUROC of what the network gives out before the softmax."""
    return compute_macro_auroc(logits.float().softmax(dim=1), truth)


def compute_macro_auroc(probability: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean one-vs-rest AUROC of the classes that stand in `truth` beside others; nan where none does.

    `probability`: shape (n, k); `truth`: shape (n,).
    """
    probability, truth = probability.cpu().numpy(), truth.cpu().numpy()
    if not np.isfinite(probability).all():
        return float("nan")
    scored_classes = [k for k in range(probability.shape[1]) if 0 < (truth == k).sum() < len(truth)]
    scores = [roc_auc_score(truth == k, probability[:, k]) for k in scored_classes]
    return float(np.mean(scores)) if scores else float("nan")
