"""Conversion of published state dicts to the names of a network: containers, prefixes, layouts, sizes and channels.

Only tensors of the families in FAMILIES are dropped. Every other tensor that the network does not have remains, so
that the caller can report it.
"""

import re
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import nn

from fastcxr.models.layouts import (
    DINOV2,
    LAYOUTS,
    TIMM_ANCHOR,
    Layout,
    State,
    convert_dinov2,
    describe_transformer,
    find_grid,
    name_timm_like,
)

# entries of checkpoints that hold the state dict, in the order of preference
CONTAINERS = ("state_dict", "model_state_dict", "model", "teacher", "model_ema", "module", "network", "student")
PREFIX = re.compile(r"^(?:(?:model|module|backbone|encoder|teacher|student|network|visual|_orig_mod)\.)*")
MASK_TOKEN = "mask token"
FAMILIES = {
    MASK_TOKEN: re.compile(r"(^|\.)mask_token$"),
    "decoder": re.compile(r"^(decoder|segmentation_head)[._]"),
    "text tower": re.compile(
        r"^(text|text_model|text_projection|token_embedding|ln_final|logit_scale|logit_bias)(\.|$)"
    ),
    "projection head": re.compile(r"^(dino_head|ibot_head|projector|omni_heads|lm_head|visual_projection|proj$)"),
    "rotary buffer": re.compile(r"(^|\.)rope\."),
    "attention mask": re.compile(r"\.(attn_mask|relative_position_index)$"),
    "position number": re.compile(r"(^|\.)position_ids$"),
    "student": re.compile(r"^student\."),
}
# only for tensors that do not belong to the encoder, which may have layers with these names
OUTER_FAMILIES = {
    "head": re.compile(r"^(head|heads|classifier|fc|linear)\."),
    "text tower": re.compile(r"^(transformer\.resblocks\.|positional_embedding$)"),
}
TIMM_FAMILIES = ("timm.models.vision_transformer", "timm.models.eva", "timm.models.swin_transformer")
RESAMPLED_TABLE = re.compile(r"pos_embed$|relative_position_bias_table$")
# norm of the difference of all tokens as a share of their norm, with random weights: see test_convert_parity.py
DINOV2_NOTE = (
    "; the reference implementation of DINOv2 without registers resamples without antialiasing, "
    "and its features differ by up to 3 % at 224 px"
)


@dataclass(frozen=True)
class Converted:
    """Tensors of a file under the names of a network, and what was found in the file.

    Attributes:
        state: tensors by name.
        layout: name of the layout, or None for networks other than vision transformers.
        found: description of the transformer in the file, or None.
        changes: what was dropped or adapted, in words.
        resampled: which position embeddings were resampled, in words, or None.
    """

    state: State
    layout: str | None
    found: str | None
    changes: tuple[str, ...]
    resampled: str | None


def find_tensors(content: dict[str, Any]) -> State:
    """Return the state dict of a checkpoint, without the prefix "module." of DataParallel."""
    for _ in CONTAINERS:  # not without end: a container may hold itself
        content = next((content[name] for name in CONTAINERS if isinstance(content.get(name), dict)), content)
    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def convert_state(state: State, network: nn.Module) -> Converted:
    """Return the tensors of a file under the names of `network`, with the sizes and channels that it needs.

    A file of another network is converted as far as possible; the caller compares names and shapes.
    """
    network_state = network.state_dict()
    layout = next((layout for layout in LAYOUTS if _find_prefixes(state, layout.anchor)), None)
    prefix = _choose_prefix(state, network_state, layout.anchor if layout else None)
    inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    outer = {key: value for key, value in state.items() if not key.startswith(prefix)}
    kept_outer, dropped = _drop_families(outer, network_state, is_outer=True)
    if not layout and TIMM_ANCHOR in inner:
        name = name_timm_like(inner, prefix)
        layout = Layout(name, TIMM_ANCHOR, convert_dinov2 if name == DINOV2 else dict)
    inner, dropped_inner = _drop_families(inner, network_state)
    inner = layout.convert(inner) if layout else inner
    found = describe_transformer(layout.name, inner) if layout and TIMM_ANCHOR in inner else None
    fitted = _fit_to_network(inner, network)
    resampled = _describe_resampling(inner, fitted)
    if resampled and layout and DINOV2 in layout.name and "reg_token" not in fitted:
        resampled += DINOV2_NOTE
    fitted = {key: value for key, value in fitted.items() if not FAMILIES[MASK_TOKEN].search(key)}
    fitted, channels = _adapt_channels(fitted, network)
    changes = [f"prefix {prefix} removed"] if prefix else []
    if counts := dropped + dropped_inner:
        changes.append(f"dropped: {', '.join(f'{family} ({n})' for family, n in sorted(counts.items()))}")
    return Converted(fitted | kept_outer, layout.name if layout else None, found, (*changes, *channels), resampled)


def _find_prefixes(state: State, anchor: str) -> list[str]:
    return [key.removesuffix(anchor) for key in state if key == anchor or key.endswith(f".{anchor}")]


def _choose_prefix(state: State, network_state: State, anchor: str | None) -> str:
    """Return what precedes the names of the encoder in a file: of a teacher, else not of a student, and the shortest.

    Without the anchor of a layout, it is the prefix that gives most names of the network.
    """

    def rank(prefix: str) -> tuple[bool, bool, int]:
        return "teacher" not in prefix, "student" in prefix, len(prefix)

    if anchor:
        return min(_find_prefixes(state, anchor), key=rank)
    first_key = next(iter(network_state), TIMM_ANCHOR)
    prefixes = {"", *_find_prefixes(state, first_key), *_find_prefixes(state, TIMM_ANCHOR)}

    def count_names(prefix: str) -> int:
        return sum(f"{prefix}{key}" in state for key in network_state)

    return min(prefixes, key=lambda prefix: (-count_names(prefix), f"{prefix}{TIMM_ANCHOR}" not in state, rank(prefix)))


def _drop_families(state: State, network_state: State, is_outer: bool = False) -> tuple[State, Counter[str]]:
    """Return the tensors that are not of a family to drop, and the number of dropped ones by family.

    A mask token is counted and kept, because the conversion of masked image models depends on it.
    """
    kept, dropped = {}, Counter()
    for key, value in state.items():
        family = _find_family(key, is_outer)
        is_dropped = family is not None and key not in network_state
        dropped.update([family] if is_dropped else [])
        if not is_dropped or family == MASK_TOKEN and not is_outer:
            kept[key] = value
    return kept, dropped


def _find_family(key: str, is_outer: bool) -> str | None:
    """Return the family of a tensor to drop, or None. `is_outer`: whether it does not belong to the encoder."""
    names = {key, PREFIX.sub("", key)} if is_outer else {key}
    families = [*FAMILIES.items(), *(OUTER_FAMILIES.items() if is_outer else ())]
    return next((family for family, pattern in families if any(map(pattern.search, names))), None)


def _fit_to_network(state: State, network: nn.Module) -> State:
    """Apply timm's conversion for the family of the network: names, and tables resampled to its grid.

    timm would resample patches of another size too. They are another network, and are left for the caller to report.
    """
    family, own_patch = type(network).__module__, network.state_dict().get(TIMM_ANCHOR)
    if family not in TIMM_FAMILIES or own_patch is None or TIMM_ANCHOR not in state:
        return state
    if state[TIMM_ANCHOR].shape[-2:] != own_patch.shape[-2:]:
        return state
    try:
        return sys.modules[family].checkpoint_filter_fn(dict(state), network)
    except (AttributeError, RuntimeError):  # blocks or tokens that the network does not have
        return state


def _describe_resampling(state: State, fitted: State) -> str | None:
    """Describe the first table that was resampled, or return None."""
    changed = [key for key in fitted if key in state and fitted[key].shape != state[key].shape]
    for key in filter(RESAMPLED_TABLE.search, changed):
        axis, table = (1, "position embeddings") if key.endswith("pos_embed") else (0, "tables of relative positions")
        old, new = (find_grid(tensors[key].shape[axis]) for tensors in (state, fitted))
        return f"{table} resampled from {old} x {old} to {new} x {new}"
    return None


def _adapt_channels(state: State, network: nn.Module) -> tuple[State, list[str]]:
    """Adapt the first convolution to the number of channels of the network, for 1 and 3 channels.

    The output for a gray image is the same in one channel and, with the same normalization, in three equal channels.
    """
    key, own = next(((key, value) for key, value in network.state_dict().items() if value.ndim == 4), ("", None))
    weight = state.get(key)
    if own is None or weight is None or weight.ndim != 4 or {weight.shape[1], own.shape[1]} != {1, 3}:
        return state, []
    adapted = adapt_input_conv(1, weight) if own.shape[1] == 1 else weight.repeat(1, 3, 1, 1) / 3
    return state | {key: adapted}, [f"first layer adapted from {weight.shape[1]} to {own.shape[1]} channels"]
