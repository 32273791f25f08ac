"""Fusion of convolution, batch norm and activation for inference on CPUs.

At inference the statistics of a batch norm are constants, and its scale and shift can be folded into the preceding
convolution. oneDNN applies the following activation in the same call. The outputs are equal within rounding, with two
memory passes fewer per feature map. `benchmarks/cpu_fusion.py` measures the gain of each part.

fuse_for_inference is the only entry point, because private torch operators are used here.
"""

import copy
import logging
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import nn
from torch.nn.functional import conv2d
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fastcxr.models.heads import find_head
from fastcxr.models.precision import Fp32Conv2d, autocast, has_batch_norm, is_plain_conv, keep_stem_fp32
from fastcxr.models.preprocessing import InputSpec, make_blank_image

log = logging.getLogger("fastcxr")
RELATIVE_TOLERANCE = 1e-3  # of the norm of the output; float32 rounding errors are far smaller
TracedOutputs = dict[nn.Module | None, torch.Tensor]
SAMPLE_STRIDE = 13  # not a divisor of common widths of feature maps, so the samples cover all columns
ONEDNN_ACTIVATIONS: dict[type, tuple[str, list[float]]] = {  # names and arguments in oneDNN
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}


@dataclass(eq=False)
class ConvBnAct:
    """A convolution, its batch norm and its activation, if any.

    The activation is part of the batch norm (timm's BatchNormAct2d) or a separate module.
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    activation: nn.Module | None


class FusedConv:
    """Replacement of a convolution's forward: convolution, batch norm and, if requested, activation in one call.

    The bias stays in float32. A bias rounded to bfloat16 has the same error at every position, which pooling does not
    average out: the error of pooled feature maps of five single convolutions was 9 to 41 times larger.
    """

    def __init__(self, block: ConvBnAct, fuse_activation: bool):
        conv, norm = block.conv, block.norm
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        # is_fusable excludes norms without statistics
        weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)  # pyright: ignore[reportArgumentType]
        self.weight, self.bias = weight.detach(), bias.detach()
        self.conv_options = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.activation = ONEDNN_ACTIVATIONS[type(block.activation)] if fuse_activation else ("none", [])

    def __call__(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the output of the fused block."""
        maps, (padding, stride, dilation, groups) = maps.to(self.weight.dtype), self.conv_options
        if not has_onednn(maps.device):
            return conv2d(maps, self.weight, self.bias, stride, padding, dilation, groups)
        options = (padding, stride, dilation, groups, *self.activation, "")
        return torch.ops.mkldnn._convolution_pointwise(maps, self.weight, self.bias, *options)


def has_onednn(device: torch.device) -> bool:
    """Return whether oneDNN convolutions with fused activation and float32 bias are available on this device."""
    is_available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    return device.type == "cpu" and is_available


@torch.inference_mode(False)  # inference tensors have no version counter, which the tracer needs
@torch.no_grad()
def fuse_for_inference(network: nn.Module, input_spec: InputSpec, precision: str) -> nn.Module:
    """Return a copy of a network in evaluation mode, with convolutions, batch norms and activations fused.

    The copy stays unfused if fused float32 outputs differ by more than RELATIVE_TOLERANCE, if the device does not
    support the fused convolutions, in bfloat16 without oneDNN, and in float16.

    Args:
        network: any network; it does not change, and the copy is on the same device.
        input_spec: size and channels of the input for which outputs are compared.
        precision: "fp32", "fp16" or "bf16", the precision of later calls of the copy (see precision.autocast).
    """
    unfused = copy.deepcopy(network).eval().to(memory_format=torch.channels_last)
    device = next(unfused.parameters()).device
    is_supported = precision == "fp32" or (precision == "bf16" and has_onednn(device))
    return fuse_blocks(unfused, input_spec, precision) if is_supported and has_batch_norm(network) else unfused


def fuse_blocks(network: nn.Module, input_spec: InputSpec, precision: str) -> nn.Module:
    """Return a fused copy of the network, or the network itself if fusion fails (see fuse_for_inference)."""
    fused = copy.deepcopy(network)
    device = next(fused.parameters()).device
    if precision == "bf16":
        keep_stem_fp32(fused, input_spec)
    image = make_noise_image(input_spec).to(device)
    blocks, expected = trace(fused, image)
    fused_convs = {block: fuse_block(block, device) for block in blocks}
    try:
        is_valid = is_close(trace(fused, image)[1], expected)
        for block, fused_conv in fused_convs.items():
            if precision == "bf16" and not isinstance(block.conv, Fp32Conv2d):
                fused_conv.weight = fused_conv.weight.bfloat16()
        with autocast(precision, device):
            fused(image)
    except RuntimeError as error:  # the CPU or this version of torch does not support the fused convolution
        log.debug("convolutions and batch norms are not fused: %s", error)
        is_valid = False
    return fused if is_valid else network


def fuse_block(block: ConvBnAct, device: torch.device) -> FusedConv:
    """Compute the whole block in its convolution, in place; the other modules stay for their hooks and names."""
    inner_activation = getattr(block.norm, "act", None)
    is_activation_fused = has_onednn(device) and type(block.activation) in ONEDNN_ACTIVATIONS
    fused_conv, identity = FusedConv(block, fuse_activation=is_activation_fused), nn.Identity().forward
    forwards: dict[nn.Module, Callable[..., torch.Tensor]] = {block.conv: fused_conv, block.norm: identity}
    if inner_activation and not is_activation_fused:
        forwards[block.norm] = inner_activation.__call__
    elif block.activation and is_activation_fused and not inner_activation:
        forwards[block.activation] = identity
    for module, forward in forwards.items():
        module.forward = forward
    return fused_conv


def is_close(outputs: TracedOutputs, expected: TracedOutputs) -> bool:
    """Return whether all outputs are equal within RELATIVE_TOLERANCE."""
    errors = {module: (outputs[module] - output).norm() for module, output in expected.items()}
    return all(bool(errors[module] <= RELATIVE_TOLERANCE * output.norm()) for module, output in expected.items())


def make_noise_image(input_spec: InputSpec) -> torch.Tensor:
    """Return a fixed random input, shape (1, channels, size, size); the global random state does not change."""
    return torch.randn(make_blank_image(input_spec).shape, generator=torch.Generator().manual_seed(0))


class GraphTracer:
    """Hooks for one forward pass that find the blocks of a network and store samples of their outputs."""

    def __init__(self):
        self.producers: dict[int, tuple[weakref.ref[torch.Tensor], int, nn.Conv2d | ConvBnAct]] = {}
        self.blocks: list[ConvBnAct] = []
        self.outputs: TracedOutputs = {}
        self.n_calls: Counter[nn.Module] = Counter()
        self.input_producers: dict[nn.Module, nn.Conv2d | ConvBnAct | None] = {}

    def before_module(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        """Store which module produced the input, before this module changes the input in place."""
        self.n_calls[module] += 1
        self.input_producers[module] = self.find_producer(inputs[0])

    def before_head(self, layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        """Store the input of a layer of the head, because the output of a zero-initialized head is always zero."""
        self.outputs[layer] = inputs[0].clone()

    def after_module(self, module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        """Store a sample of the output, and the block of the module."""
        producer = self.input_producers[module]
        if isinstance(module, nn.Conv2d):
            self.record_producer(output, module)
        elif isinstance(module, nn.BatchNorm2d):
            self.outputs[module] = subsample(output)
            if is_fusable(producer, module):
                self.blocks.append(ConvBnAct(producer, module, getattr(module, "act", None)))
                self.record_producer(output, self.blocks[-1])
        elif isinstance(producer, ConvBnAct) and producer.activation is None:
            producer.activation = module
            self.outputs[producer.norm] = subsample(output)

    def record_producer(self, output: torch.Tensor, producer: nn.Conv2d | ConvBnAct) -> None:
        """Store the producer of an output; it is valid until the tensor is freed or changed in place (`x += y`)."""
        self.producers[id(output)] = (weakref.ref(output), output._version, producer)

    def find_producer(self, maps: torch.Tensor) -> nn.Conv2d | ConvBnAct | None:
        """Return the producer of a tensor, or None if it is unknown or the tensor was changed in place."""
        reference, version, producer = self.producers.get(id(maps), (lambda: None, 0, None))
        return producer if reference() is maps and version == maps._version else None

    def list_blocks(self) -> list[ConvBnAct]:
        """Return the blocks whose convolution and batch norm run once, without activations that run more often."""
        for block in self.blocks:
            if block.activation and self.n_calls[block.activation] > 1:
                block.activation = None
        return [block for block in self.blocks if self.n_calls[block.conv] == self.n_calls[block.norm] == 1]


def subsample(output: torch.Tensor) -> torch.Tensor:
    """Return a copy of every SAMPLE_STRIDE-th value: all values of a large network do not fit into memory."""
    return output.flatten()[::SAMPLE_STRIDE].clone()


def is_fusable(conv: object, norm: nn.BatchNorm2d) -> TypeGuard[nn.Conv2d]:
    """Return whether a batch norm with running statistics follows a plain convolution with zero padding."""
    has_zero_padding = is_plain_conv(conv) and conv.padding_mode == "zeros" and isinstance(conv.padding, tuple)
    return has_zero_padding and norm.running_mean is not None


@torch.no_grad()
def trace(network: nn.Module, image: torch.Tensor) -> tuple[list[ConvBnAct], TracedOutputs]:
    """Return the blocks of a network, and samples of outputs by module.

    The samples are those of all blocks and batch norms. The inputs of the head's layers and the output of the network
    (key None) are complete.
    """
    tracer = GraphTracer()
    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, *ONEDNN_ACTIVATIONS)):
                hooks.enter_context(module.register_forward_pre_hook(tracer.before_module))
                hooks.enter_context(module.register_forward_hook(tracer.after_module))
        for layer in find_head(network).modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                hooks.enter_context(layer.register_forward_pre_hook(tracer.before_head))
        tracer.outputs[None] = network(image)
    return tracer.list_blocks(), tracer.outputs
