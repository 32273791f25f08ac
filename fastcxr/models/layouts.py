"""Names of tensors in published vision transformers, and their conversion to the names of timm.

The functions take a state dict without prefixes (`model.`, `backbone.`) and know nothing of the network to fill.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import _convert_dinov2, _convert_openai_clip

State = dict[str, torch.Tensor]
DINOV2 = "DINOv2"  # with Meta's own names
TIMM_ANCHOR = "patch_embed.proj.weight"
# names of Hugging Face's files, and those of its networks since transformers 5 (q_proj, gate_proj)
HF_DINOV2_NAMES = (
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.", ""),  # cls_token, mask_token, register_tokens
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.(?:attention\.)?(?:query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.)?(?:key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.)?(?:value|v_proj)\.", ".attn.v."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.(?:weights_out|down_proj)\.", ".mlp.w3."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)
HF_CLIP_NAMES = (
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),  # as it is spelled in the files
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
)
QKV = (".attn.q.", ".attn.k.", ".attn.v.")
POOL_PROJECTION = re.compile(r"^head\.attention\.in_proj_(weight|bias)$")


@dataclass(frozen=True)
class Layout:
    """Names of the tensors of a published network.

    Attributes:
        name: name in messages.
        anchor: a tensor that only this layout has; what precedes its name in a file is the prefix of the encoder.
        convert: function that returns the tensors under the names of timm.
    """

    name: str
    anchor: str
    convert: Callable[[State], State]


def convert_hf_dinov2(state: State) -> State:
    """Convert the names of Hugging Face's DINOv2, with or without registers, MLP or SwiGLU."""
    renamed = _join(_rename(state, HF_DINOV2_NAMES), QKV, ".attn.qkv.")
    return convert_dinov2(_join(renamed, (".mlp.gate_proj.", ".mlp.up_proj."), ".mlp.w12."))


def convert_dinov2(state: State) -> State:
    """Convert Meta's names, also of blocks in chunks (blocks.CHUNK.BLOCK), where BLOCK counts from the first block."""
    if "blocks.0.0.norm1.weight" in state:
        state = _rename(state, ((r"^blocks\.\d+\.(\d+\.)", r"blocks.\1"),))
    return _convert_dinov2(dict(state), None)  # pyright: ignore[reportArgumentType]: it does not use the network


def convert_hf_clip(state: State) -> State:
    """Convert the names of Hugging Face's CLIP and SigLIP, with attention pooling where the file has it."""
    renamed = _join(_rename(state, HF_CLIP_NAMES), QKV, ".attn.qkv.")
    converted = {}
    for key, value in renamed.items():
        if match := POOL_PROJECTION.match(key):
            width = len(value) // 3
            converted |= {f"attn_pool.q.{match[1]}": value[:width], f"attn_pool.kv.{match[1]}": value[width:]}
        elif key == "cls_token":
            converted[key] = value.reshape(1, 1, -1)
        else:
            converted[key] = value.unsqueeze(0) if key == "pos_embed" else value
    return converted


def convert_openai_clip(state: State) -> State:
    """Convert the image tower of OpenAI's CLIP; its projection becomes the head."""
    return _convert_openai_clip(state, None, prefix="")  # pyright: ignore[reportArgumentType]: see convert_dinov2


LAYOUTS = (
    Layout(f"Hugging Face {DINOV2}", "encoder.layer.0.layer_scale1.lambda1", convert_hf_dinov2),
    Layout("CLIP of Hugging Face", "embeddings.class_embedding", convert_hf_clip),
    Layout("SigLIP", "embeddings.patch_embedding.weight", convert_hf_clip),
    Layout("OpenAI CLIP", "class_embedding", convert_openai_clip),
)


def name_timm_like(state: State, prefix: str) -> str:
    """Return the name of a layout whose names are timm's, or close to them."""
    if "layers.0.blocks.0.attn.relative_position_bias_table" in state:
        return "Swin of timm 0.5.4" if "layers.0.downsample.reduction.weight" in state else "Swin"
    if "blocks.0.attn.q_bias" in state or "blocks.0.attn.q_proj.weight" in state:
        return "EVA-02"
    if "decoder_embed.weight" in state:
        return "MAE"
    if any(key in state for key in ("blocks.0.0.norm1.weight", "register_tokens", "mask_token")):
        return DINOV2
    return "open_clip" if prefix.endswith("visual.trunk.") else "ViT"


def describe_transformer(name: str, state: State) -> str:
    """Describe a transformer in one line: layout, blocks, width, patch, registers and image size.

    `state`: tensors under the names of timm.
    """
    width, patch = state[TIMM_ANCHOR].shape[0], state[TIMM_ANCHOR].shape[-1]
    blocks = {match[0] for key in state if (match := re.match(r"(?:layers\.\d+\.)?blocks\.\d+\.", key))}
    words = [name, f"{len(blocks)} blocks of width {width}", f"patch {patch}"]
    if DINOV2 in name:
        registers = state["reg_token"].shape[1] if "reg_token" in state else 0
        words.append(f"{registers} registers" if registers else "no registers")
    if "pos_embed" in state:
        n_tokens = state["pos_embed"].shape[1]
        words.append(f"{find_grid(n_tokens) * patch} px")
    return ", ".join(words)


def describe_convolutional(state: State) -> str | None:
    """Describe a convolutional network by its first layer, or return None if the file has less than two convolutions.

    The order of the tensors is not that of the layers in all files: the first layer is the one that receives an image.
    """
    kernels = {key: value.shape for key, value in state.items() if value.ndim == 4}
    if len(kernels) < 2:
        return None
    by_channels = ([key for key, shape in kernels.items() if shape[1] == n] for n in (3, 1))
    first = next(filter(None, by_channels), [])
    if len(first) != 1:
        return "a convolutional network"
    n_channels, height, width = kernels[first[0]][1:]
    channels = "1 channel" if n_channels == 1 else f"{n_channels} channels"
    return f"a convolutional network: first layer {first[0].removesuffix('.weight')} {height} x {width}, {channels}"


def find_grid(n_tokens: int) -> int:
    """Return the side of the grid of patches, from the number of positions with or without those of other tokens."""
    return int(n_tokens**0.5)


def _rename(state: State, names: tuple[tuple[str, str], ...]) -> State:
    renamed = {}
    for key, value in state.items():
        for pattern, name in names:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    return renamed


def _join(state: State, parts: tuple[str, ...], joined: str) -> State:
    """Join the rows of tensors whose names differ in one of `parts`, in this order, under a name with `joined`."""
    groups = {}
    for key in state:
        before, found, after = key.rpartition(parts[0])
        keys = [f"{before}{part}{after}" for part in parts]
        if found and all(part in state for part in keys):
            groups[f"{before}{joined}{after}"] = keys
    used = {key for keys in groups.values() for key in keys}
    rest = {key: value for key, value in state.items() if key not in used}
    return rest | {name: torch.cat([state[key] for key in keys]) for name, keys in groups.items()}
