"""Faster bfloat16 gradients on CPUs for 2d convolutions with few channels per group.

oneDNN is slow at two gradients in bfloat16: that of the input of a strided convolution (up to fifty times slower than
in float32), and that of the weights for a kernel larger than 3 x 3 or several channels per group (three to five times).
`benchmarks/cpu_fusion.py --batches` measures the gain: 25 to 39 % of a training step of MobileNetV2 and EfficientNet.
"""

import torch
from torch.nn.grad import conv2d_input, conv2d_weight
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

MIN_FAST_GROUP_CHANNELS = 8  # channels per group from which oneDNN is fast in bfloat16


class GroupedConvBackward(TorchFunctionMode):
    """Context in which bfloat16 convolutions with few channels per group have the same outputs and faster gradients.

    Convolutions outside autocast do not change.
    """

    def __torch_function__(self, function, types, arguments=(), options=None):
        """Replace conv2d; call every other torch function unchanged."""
        needs_gradient = function is torch.conv2d and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        return (grouped_conv2d if needs_gradient else function)(*arguments, **(options or {}))


def grouped_conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):  # the names of torch.conv2d
    """Return torch.conv2d of the arguments, with faster gradients if groups have few channels."""
    if groups == 1 or weight.shape[1] >= MIN_FAST_GROUP_CHANNELS or isinstance(padding, str):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return _GroupedConv2d.apply(input, weight, bias, *map(_pair, (stride, padding, dilation)), groups)


class _GroupedConv2d(torch.autograd.Function):
    """Forward pass in bfloat16, as in autocast; backward pass from the same rounded tensors."""

    @staticmethod
    def forward(context, images, weight, bias, *conv_options):
        images, weight = images.bfloat16(), weight.bfloat16()
        context.save_for_backward(images, weight)
        context.conv_options = conv_options
        return torch.conv2d(images, weight, None if bias is None else bias.bfloat16(), *conv_options)

    @staticmethod
    def backward(context, gradient):
        images, weight = context.saved_tensors
        (stride, padding, dilation, groups), needs_gradient = context.conv_options, context.needs_input_grad
        images_gradient = weight_gradient = bias_gradient = None
        if needs_gradient[0]:
            dilated = dilate_gradient(gradient, images, weight, context.conv_options)
            images_gradient = conv2d_input(images.shape, weight, dilated, 1, padding, dilation, groups)
        if needs_gradient[1]:
            dtype = torch.bfloat16 if weight.shape[1] == 1 and max(weight.shape[2:]) <= 3 else torch.float32
            weight_gradient = conv2d_weight(
                images.to(dtype), weight.shape, gradient.to(dtype), stride, padding, dilation, groups
            )
        if needs_gradient[2]:
            bias_gradient = gradient.sum(dim=(0, 2, 3), dtype=torch.float32)
        return images_gradient, weight_gradient, bias_gradient, None, None, None, None


def dilate_gradient(
    gradient: torch.Tensor, images: torch.Tensor, weight: torch.Tensor, conv_options: tuple
) -> torch.Tensor:
    """Return the gradient of the equivalent stride-1 convolution: insert stride - 1 zeros between the entries."""
    stride, padding, dilation, _ = conv_options
    if stride == (1, 1):
        return gradient
    output_size = [
        size + 2 * edge - step * (kernel - 1)
        for size, edge, step, kernel in zip(images.shape[2:], padding, dilation, weight.shape[2:], strict=True)
    ]
    dilated = gradient.new_zeros(*gradient.shape[:2], *output_size).to(memory_format=torch.channels_last)
    dilated[:, :, :: stride[0], :: stride[1]] = gradient
    return dilated
