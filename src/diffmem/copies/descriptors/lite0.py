"""EfficientNet-Lite0 written out in torch alone, to read published ImageNet weights without torchvision.

Source: Tan & Le, EfficientNet, ICML 2019; the Lite variants (ReLU6, no squeeze and excitation, stem and head not scaled)
are Google's of 2020. Layers are named as in the published file.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

# (expansion, kernel, stride, channels, repeats) of each stage.
_STAGES = (
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)  # fmt: skip
_PAIRS = (
    ("_conv_stem", "_bn0"), ("_conv_head", "_bn1"), ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
)  # fmt: skip
_STEM, _HEAD, _EPSILON = 32, 1280, 1e-3
INNER = 10
"""The block whose output is read beside the last one's: the last of those at 1/16 of the input's side."""


class _Conv(nn.Conv2d):
    """A convolution padded as TensorFlow does ("SAME"): the odd pixel goes to the right and to the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        missing = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]]
        top, left = missing[0] // 2, missing[1] // 2
        x = functional.pad(x, (left, missing[1] - left, top, missing[0] - top))
        return functional.conv2d(x, self.weight, self.bias, self.stride, 0, 1, self.groups)


class _Block(nn.Module):
    """Expand, convolve each channel, project; added to the input where the shape stays."""

    def __init__(self, inside: int, out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        middle = inside * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and inside == out
        if self.expands:
            self._expand_conv = _Conv(inside, middle, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(middle, eps=_EPSILON)
        self._depthwise_conv = _Conv(middle, middle, kernel, stride, groups=middle, bias=False)
        self._bn1 = nn.BatchNorm2d(middle, eps=_EPSILON)
        self._project_conv = _Conv(middle, out, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out, eps=_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        out: Tensor = x + y if self.adds else y
        return out


class EfficientNetLite0(nn.Module):
    """The network without its classifier.

    Args:
        weights: tensors of the published file; those of the classifier are not used.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._conv_stem = _Conv(3, _STEM, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(_STEM, eps=_EPSILON)
        blocks, inside = [], _STEM
        for expansion, kernel, stride, out, repeats in _STAGES:
            for number in range(repeats):
                blocks.append(_Block(inside, out, expansion, kernel, 1 if number else stride))
                inside = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _Conv(inside, _HEAD, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(_HEAD, eps=_EPSILON)
        self.load_state_dict({name: value for name, value in weights.items() if not name.startswith("_fc.")})
        self.eval()

    def fused(self) -> EfficientNetLite0:
        """This network with its normalisations taken into the convolutions before them, which saves a third of the time."""
        for module in (self, *self._blocks):
            for conv, norm in _PAIRS:
                if hasattr(module, conv) and isinstance(getattr(module, norm), nn.BatchNorm2d):
                    setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                    setattr(module, norm, nn.Identity())
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of block `INNER` [N, 112, h/16, w/16] and of the head [N, 1280, h/32, w/32] of inputs (pixel − 127) / 128."""
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        inner = x
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number == INNER:
                inner = x
        return inner, functional.relu6(self._bn1(self._conv_head(x)))
