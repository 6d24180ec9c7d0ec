"""The Wide ResNet of <mixmatch/models/wide_resnet.hpp> in PyTorch: same names, same shapes, same function.

    from safetensors.torch import load_file
    model = WideResNet(num_classes=10, depth=28, widen_factor=2)
    model.load_state_dict(load_file("model.safetensors"))      # written by mixmatch::save_safetensors
    model.eval()
    logits = model(images)                                     # float [N, 3, H, W], in [-1, 1]

Needs PyTorch 1.13 or newer; can be scripted with torch.jit.script.
"""

import math
from collections import OrderedDict

import torch
from torch import nn


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.normal_(conv.weight, 0, math.sqrt(2 / (kernel * kernel * outputs)))
    return conv


class _Block(nn.Module):
    """BN, leaky ReLU, conv, BN, leaky ReLU, conv, plus the shortcut; the network's first block takes the
    shortcut after its activation."""

    def __init__(self, inputs, outputs, stride, activate_before_residual, slope, norm):
        super().__init__()
        self.activate_before_residual = activate_before_residual
        self.bn1 = nn.BatchNorm2d(inputs, **norm)
        self.conv1 = _convolution(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs, **norm)
        self.conv2 = _convolution(outputs, outputs, 3, 1)
        # nn.Identity has no entry in the state_dict.
        self.convShortcut = nn.Identity() if inputs == outputs else _convolution(inputs, outputs, 1, stride)
        self.activation = nn.LeakyReLU(slope)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = self.activation(self.bn1(x))
        residual = self.conv2(self.activation(self.bn2(self.conv1(activated))))
        return residual + self.convShortcut(activated if self.activate_before_residual else x)


class _Group(nn.Module):
    """The residual blocks of one scale."""

    def __init__(self, count, inputs, outputs, stride, first, slope, norm):
        super().__init__()
        self.layer = nn.Sequential(
            *(
                _Block(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1, first and i == 0, slope, norm)
                for i in range(count)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class WideResNet(nn.Sequential):
    """Options and defaults are those of mixmatch::models::WideResNetOptions."""

    def __init__(
        self,
        num_classes: int,
        depth: int = 28,
        widen_factor: int = 2,
        scales: int = 3,
        in_channels: int = 3,
        leaky_slope: float = 0.1,
        batch_norm_momentum: float = 0.001,
        batch_norm_eps: float = 1e-3,
    ):
        if depth < 10 or (depth - 4) % 6 != 0:
            raise ValueError(f"depth must be 6 n + 4 (10, 16, 22, 28, …), got {depth}")
        norm = {"eps": batch_norm_eps, "momentum": batch_norm_momentum}
        channels = 16
        modules = OrderedDict(conv1=_convolution(in_channels, channels, 3, 1))
        for scale in range(scales):
            filters = 16 * widen_factor * 2**scale
            modules[f"block{scale + 1}"] = _Group(
                (depth - 4) // 6, channels, filters, 2 if scale > 0 else 1, scale == 0, leaky_slope, norm
            )
            channels = filters
        modules["bn1"] = nn.BatchNorm2d(channels, **norm)
        modules["activation"] = nn.LeakyReLU(leaky_slope)
        modules["pool"] = nn.AdaptiveAvgPool2d(1)
        modules["flatten"] = nn.Flatten()
        modules["fc"] = nn.Linear(channels, num_classes)
        nn.init.xavier_normal_(modules["fc"].weight)
        nn.init.zeros_(modules["fc"].bias)
        super().__init__(modules)
