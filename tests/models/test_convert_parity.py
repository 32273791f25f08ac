"""Converted weights of published layouts give the features of their reference implementation.

The references are those of transformers, with random weights and two blocks of the true width. Layouts without an
installable reference are renamed from timm's names and back: no tensor is missing or left over, and the output is
equal.
"""

import argparse
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers.mlp import SwiGLUPacked
from torch import nn

from fastcxr.errors import WeightsError
from fastcxr.models.encoder_network import make_encoder_network
from fastcxr.models.encoders import ENCODERS
from fastcxr.models.weights import load_weights

pytestmark = pytest.mark.slow  # the reference implementations
N_BLOCKS = 2
CHEXFOUND_MLP = {"mlp_ratio": 5472 / 1024, "mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}


def randomize(network: nn.Module, seed: int = 0) -> nn.Module:
    """Fill all tensors with random values, to detect tensors that are swapped."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            continue
        center = 1.0 if ("norm" in name and name.endswith("weight")) or name.endswith("running_var") else 0.0
        tensor.normal_(center, 0.1 if tensor.ndim == 1 else 0.02, generator=generator)
    return network.eval()


def make_images(size: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(1))


def make_timm(name: str, size: int, **options) -> nn.Module:
    return timm.create_model(name, img_size=size, num_classes=0, depth=N_BLOCKS, **options).eval()


def make_encoder(name: str, size: int, **options) -> nn.Module:
    encoder = ENCODERS[name]
    options = encoder.options | {"depth": N_BLOCKS} | options
    return make_encoder_network(replace(encoder, options=options), 2, size).eval()


@torch.inference_mode()
def compare_tokens(reference: nn.Module, network: nn.Module, size: int) -> tuple[float, float]:
    """Return the largest difference of all tokens, and the norm of the difference as a share of that of the tokens."""
    images = make_images(size)
    tokens = reference(images).last_hidden_state
    difference = tokens - network.forward_features(images)
    return difference.abs().max().item(), (difference.norm() / tokens.norm()).item()


@pytest.fixture
def save(tmp_path):
    """Save a network of transformers, and delete the file, which is large, after the test."""

    def save(reference: nn.Module):
        reference.save_pretrained(tmp_path)
        return tmp_path / "model.safetensors"

    yield save
    for file in tmp_path.glob("model.*"):
        file.unlink()


def make_dinov2(width: int = 768, heads: int = 12, size: int = 518, patch: int = 14, **options) -> nn.Module:
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    with_registers = "num_register_tokens" in options
    config_class, network_class = (
        (Dinov2WithRegistersConfig, Dinov2WithRegistersModel) if with_registers else (Dinov2Config, Dinov2Model)
    )
    config = config_class(hidden_size=width, num_attention_heads=heads, num_hidden_layers=N_BLOCKS, image_size=size,
                          patch_size=patch, **options)  # fmt: skip
    return randomize(network_class(config))


@pytest.mark.slow
@pytest.mark.needs("transformers")
def test_dinov2_of_hugging_face_has_equal_tokens_at_518_px(save, caplog):
    caplog.set_level("INFO", "fastcxr")
    reference, network = make_dinov2(), make_encoder("rad-dino", 518)
    load_weights(network, save(reference))
    assert compare_tokens(reference, network, 518)[0] <= 1e-6
    found = "Hugging Face DINOv2, 2 blocks of width 768, patch 14, no registers, 518 px; dropped: mask token (1)"
    assert caplog.messages == [f"model.safetensors: {found}"]


@pytest.mark.needs("transformers")
def test_dinov2_without_registers_differs_at_224_px_as_stated(save, caplog):
    caplog.set_level("INFO", "fastcxr")
    reference, network = make_dinov2(), make_encoder("rad-dino", 224)
    load_weights(network, save(reference))
    assert "position embeddings resampled from 37 x 37 to 16 x 16" in caplog.text
    assert "features differ by up to 3 % at 224 px" in caplog.text
    assert 0.02 < compare_tokens(reference, network, 224)[1] <= 0.03


@pytest.mark.needs("transformers")
@pytest.mark.parametrize("size", [518, 224])
def test_dinov2_with_registers_has_equal_tokens_also_at_224_px(save, caplog, size):
    caplog.set_level("INFO", "fastcxr")
    reference = make_dinov2(384, 6, num_register_tokens=4)
    network = make_timm("vit_small_patch14_reg4_dinov2", size)
    load_weights(network, save(reference))
    assert compare_tokens(reference, network, size)[0] <= 1e-6
    assert "4 registers" in caplog.text and "differ" not in caplog.text


@pytest.mark.slow
@pytest.mark.needs("transformers")
def test_the_shape_of_chexfound_has_equal_tokens(save):
    reference = make_dinov2(1024, 16, 512, patch=16, num_register_tokens=4, use_swiglu_ffn=True)
    network = make_encoder("chexfound", 512)
    load_weights(network, save(reference))
    assert compare_tokens(reference, network, 512)[0] <= 1e-6


@pytest.mark.needs("transformers")
@torch.inference_mode()
def test_siglip_has_equal_pooled_features(save, caplog):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    caplog.set_level("INFO", "fastcxr")
    config = SiglipVisionConfig(hidden_size=1152, intermediate_size=4304, num_hidden_layers=N_BLOCKS,
                                num_attention_heads=16, image_size=224, patch_size=14)  # fmt: skip
    reference = randomize(SiglipVisionModel(config))
    network = make_encoder("medsiglip", 224)
    load_weights(network, save(reference))
    images = make_images(224)
    features = network.forward_head(network.forward_features(images), pre_logits=True)
    assert (reference(images).pooler_output - features).abs().max() <= 1e-5
    assert "SigLIP, 2 blocks of width 1152, patch 14, 224 px" in caplog.text


SMALL = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": N_BLOCKS, "intermediate_size": 96}
SMALL_TIMM = {"embed_dim": 64, "num_heads": 2, "mlp_ratio": 1.5}


@pytest.mark.needs("transformers")
@torch.inference_mode()
def test_a_state_dict_of_transformers_5_has_the_names_of_its_network(tmp_path):
    reference = make_dinov2(64, 2, 224, num_register_tokens=4, use_swiglu_ffn=True)
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    options = {"embed_dim": 64, "num_heads": 2} | CHEXFOUND_MLP | {"mlp_ratio": 5.5}
    network = make_timm("vit_small_patch14_reg4_dinov2", 224, **options)
    load_weights(network, tmp_path / "weights.pth")
    assert compare_tokens(reference, network, 224)[0] <= 1e-6


@pytest.mark.needs("transformers")
@pytest.mark.parametrize("kind", ["Siglip", "CLIP"])
@torch.inference_mode()
def test_the_image_tower_of_a_model_with_text_is_read(tmp_path, caplog, kind):
    import transformers

    caplog.set_level("INFO", "fastcxr")
    vision = SMALL | {"image_size": 64, "patch_size": 16}
    config = getattr(transformers, f"{kind}Config")(vision_config=vision, text_config=SMALL | {"vocab_size": 50})
    reference = randomize(getattr(transformers, f"{kind}Model")(config))
    reference.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["vision_model.embeddings.position_ids"] = torch.arange(16)  # in files of transformers 4
    save_file(state, tmp_path / "model.safetensors")
    network = make_encoder({"Siglip": "medsiglip", "CLIP": "chexzero"}[kind], 64, patch_size=16, **SMALL_TIMM)
    load_weights(network, tmp_path / "model.safetensors")
    images = make_images(64)
    features = network.forward_head(network.forward_features(images), pre_logits=True)
    assert (reference.vision_model(images).pooler_output - features).abs().max() <= 1e-5
    assert re.search(
        r"2 blocks of width 64, patch 16, 64 px; prefix vision_model. removed; dropped:.* text tower", caplog.text
    )


@dataclass(frozen=True)
class Published:
    """A layout without a reference implementation: its network in timm, its names, and what else is in its files."""

    network: str
    options: dict
    names: tuple[tuple[str, str], ...]  # pattern of timm's names and replacement
    found: str
    prefix: str = ""
    extra: tuple[str, ...] = ()
    container: str = "model"
    size: int = 224


CHUNKS = (r"^blocks\.(\d+)\.", r"blocks.0.\1.")
EVA_EXTRA = ("mask_token", "lm_head.weight", "lm_head.bias", "rope.freqs_cos", "blocks.0.attn.rope.freqs_sin")
PUBLISHED = {
    "EVA-X-S, fused": Published(
        "eva02_small_patch14_224", {"patch_size": 16, "ref_feat_shape": (14, 14)},
        ((r"mlp\.fc1\.", "mlp.w12."), (r"mlp\.fc2\.", "mlp.w3."), (r"^fc_norm\.", "norm.")),
        "EVA-02, 2 blocks of width 384, patch 16, 224 px; "
        "dropped: mask token (1), projection head (2), rotary buffer (2)",
        extra=EVA_EXTRA, container="module",
    ),
    "EVA-X-B, split": Published(
        "eva02_small_patch14_224",
        {"patch_size": 16, "ref_feat_shape": (14, 14), "qkv_fused": False, "scale_mlp": True},
        ((r"mlp\.fc1_g\.", "mlp.w1."), (r"mlp\.fc1_x\.", "mlp.w2."), (r"mlp\.fc2\.", "mlp.w3."),
         (r"mlp\.norm\.", "mlp.ffn_ln."), (r"attn\.([qv])_proj\.bias", r"attn.\1_bias")),
        "EVA-02, 2 blocks of width 384, patch 16, 224 px", container="model_ema",
    ),
    "XRay-DINO": Published(
        "vit_small_patch14_dinov2", {"patch_size": 16}, (CHUNKS,),
        "DINOv2, 2 blocks of width 384, patch 16, no registers, 224 px; dropped: mask token (1)",
        extra=("mask_token",),
    ),
    "CheXFound": Published(
        "vit_small_patch14_reg4_dinov2", {"patch_size": 16, **CHEXFOUND_MLP},
        (CHUNKS, ("^reg_token", "register_tokens"), (r"mlp\.fc1\.", "mlp.w12."), (r"mlp\.fc2\.", "mlp.w3.")),
        "DINOv2, 2 blocks of width 384, patch 16, 4 registers, 224 px; prefix teacher.backbone. removed; "
        "dropped: mask token (1), projection head (2), student (2)",
        prefix="teacher.backbone.",
        extra=("teacher.backbone.mask_token", "teacher.dino_head.mlp.0.weight", "student.ibot_head.mlp.0.weight",
               "student.backbone.cls_token", "student.backbone.patch_embed.proj.weight"),
    ),
    "RAD-DINO, Meta's names": Published(
        "vit_small_patch14_dinov2", {}, (),
        "DINOv2, 2 blocks of width 384, patch 14, no registers, 224 px; prefix student.backbone. removed; "
        "dropped: mask token (1), projection head (2)",
        prefix="student.backbone.",
        extra=("student.backbone.mask_token", "student.dino_head.mlp.0.weight", "student.ibot_head.mlp.0.weight"),
    ),
    "BiomedCLIP": Published(
        "vit_small_patch16_224", {}, (),
        "open_clip, 2 blocks of width 384, patch 16, 224 px; prefix visual.trunk. removed; "
        "dropped: head (1), text tower (2)",
        prefix="visual.trunk.", container="state_dict",
        extra=("visual.head.proj.weight", "text.transformer.encoder.layer.0.output.dense.weight", "logit_scale"),
    ),
    "Ark-6": Published(
        "swin_tiny_patch4_window7_224", {}, ((r"^layers\.1\.downsample", "layers.0.downsample"), (r"head\.fc", "head")),
        "Swin of timm 0.5.4, 4 blocks of width 96, patch 4; "
        "dropped: attention mask (2), projection head (2)",
        prefix="module.", container="teacher",
        extra=("module.projector.weight", "module.omni_heads.0.weight", "layers.0.blocks.1.attn_mask",
               "layers.0.blocks.0.attn.relative_position_index"),
    ),
    "Medical MAE": Published(
        "vit_small_patch16_224", {"global_pool": "avg", "fc_norm": False}, (),
        "MAE, 2 blocks of width 384, patch 16, 224 px; dropped: decoder (3), mask token (1)",
        extra=("decoder_embed.weight", "decoder_pos_embed", "decoder_blocks.0.norm1.weight", "mask_token"),
    ),
    "CheXzero": Published(
        "vit_base_patch32_clip_quickgelu_224", {},
        ((r"^patch_embed\.proj", "conv1"), ("^pos_embed", "positional_embedding"), ("^cls_token", "class_embedding"),
         (r"^norm_pre\.", "ln_pre."), (r"^norm\.", "ln_post."), (r"\.norm([12])\.", r".ln_\1."),
         (r"attn\.qkv\.", "attn.in_proj_"), (r"attn\.proj\.", "attn.out_proj."), (r"mlp\.fc1\.", "mlp.c_fc."),
         (r"mlp\.fc2\.", "mlp.c_proj."), (r"^blocks\.", "transformer.resblocks.")),
        "OpenAI CLIP, 2 blocks of width 768, patch 32, 224 px; prefix visual. removed; "
        "dropped: projection head (1), text tower (3)",
        prefix="visual.",
        extra=("token_embedding.weight", "transformer.resblocks.0.ln_1.weight", "positional_embedding", "visual.proj"),
    ),
    "Lightning and torch.compile": Published(
        "densenet121", {}, (), "", prefix="model._orig_mod.encoder.", container="state_dict",
        extra=("model._orig_mod.classifier.weight", "model._orig_mod.decoder.blocks.0.conv.weight"),
    ),
}  # fmt: skip
CLIP_VECTORS = {"class_embedding": (0, 0), "positional_embedding": (0,)}  # without the batch dimension in the file


def make_network(layout: Published, n_classes: int = 0) -> nn.Module:
    depth = {} if "densenet" in layout.network else {"depth": N_BLOCKS}
    options = {"num_classes": n_classes} | ({"img_size": layout.size} | depth if depth else {}) | layout.options
    if "swin" in layout.network:
        options = {"num_classes": n_classes, "depths": (2, 2), "num_heads": (3, 6)}
    return timm.create_model(layout.network, **options).eval()


def publish(layout: Published, state: dict[str, torch.Tensor]) -> dict:
    """Return a checkpoint with the names of the layout, and beside them what training scripts save."""
    published = {}
    for key, value in state.items():
        for pattern, name in layout.names:
            key = re.sub(pattern, name, key)
        published[layout.prefix + key] = value[CLIP_VECTORS.get(key, ())]
    if "reg_token" in state:  # Meta adds a position embedding to the class token too
        positions = published[layout.prefix + "pos_embed"]
        published[layout.prefix + "pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    published |= {key: torch.ones(3, 2) for key in layout.extra}
    return {layout.container: published, "epoch": 3, "best": np.float64(0.9), "args": argparse.Namespace(lr=1e-3)}


@pytest.mark.parametrize("name", PUBLISHED)
@torch.inference_mode()
def test_published_names_map_one_to_one_and_give_the_same_output(tmp_path, caplog, name):
    caplog.set_level("INFO", "fastcxr")
    layout = PUBLISHED[name]
    original, network = randomize(make_network(layout)), make_network(layout)
    torch.save(publish(layout, original.state_dict()), tmp_path / "weights.pth")
    load_weights(network, tmp_path / "weights.pth")
    images = make_images(layout.size)
    assert torch.equal(original(images), network(images))
    assert layout.found in caplog.text
    loaded, expected = network.state_dict(), original.state_dict()
    assert [key for key, value in expected.items() if not torch.equal(value, loaded[key])] == []


@pytest.mark.parametrize(
    ("added", "removed", "message"),
    [({"other": torch.ones(1)}, None, "unknown keys: other"), ({}, "norm.bias", "missing keys: norm.bias")],
)
def test_a_tensor_of_no_known_family_and_a_missing_one_are_errors(tmp_path, added, removed, message):
    layout = PUBLISHED["Medical MAE"]
    checkpoint = publish(layout, make_network(layout).state_dict())
    checkpoint["model"] = {key: value for key, value in checkpoint["model"].items() if key != removed} | added
    torch.save(checkpoint, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=re.escape(f"({message}; found: MAE, 2 blocks")):
        load_weights(make_network(layout), tmp_path / "weights.pth")


@torch.inference_mode()
def test_a_file_of_an_encoder_for_another_backbone_names_the_encoder(tmp_path):
    layout = replace(PUBLISHED["EVA-X-S, fused"], network="eva02_tiny_patch14_224")
    whole = timm.create_model(layout.network, num_classes=0, **layout.options)
    torch.save(publish(layout, whole.state_dict()), tmp_path / "weights.pt")
    message = (
        "weights.pt: the file holds another network than the backbone: EVA-02, 12 blocks of width 192, patch 16, "
        "224 px. Pass eva-x-tiny as the backbone"
    )
    with pytest.raises(WeightsError, match=re.escape(message)):
        load_weights(timm.create_model("eva02_small_patch14_224", num_classes=2, depth=1), tmp_path / "weights.pt")
    torch.save(publish(layout, make_network(layout).state_dict()), tmp_path / "weights.pt")  # of no encoder: two blocks
    with pytest.raises(WeightsError, match="missing keys.*; found: EVA-02, 2 blocks of width 192.*saved from"):
        load_weights(timm.create_model("resnet10t", num_classes=2), tmp_path / "weights.pt")
