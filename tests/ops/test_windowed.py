"""A frozen function behind windows gives what it gives of images that are whole, wherever the windows lie."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from ganscale import ops
from ganscale.ops import windowed

SIDE, AT_ONCE = 23, 6
CLOSE = 1e-6  # float32 sums of hundreds of numbers
IMAGES, ABSENT = torch.randn(2, 3, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).unbind()
BOXES = torch.tensor(  # in each corner, at each edge, in the middle, of one pixel, and of unequal sides
    [[top, top + 4, left, left + 4] for top, left in product((0, 9, 19), repeat=2)] + [[11, 12, 11, 12], [3, 8, 14, 16]]
)
ROWS = torch.cartesian_prod(torch.arange(3), torch.arange(len(BOXES)))[torch.randperm(33)][:31]  # 31: not 6 each time


class Scaled(nn.Module):
    """A network that takes its images in another range, as classifiers do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = conv(stride=2)
        self.register_buffer("mean", torch.rand(4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net((x / 2 + 0.5 - self.mean) * 3)


def conv(*between: nn.Module, **facts: object) -> nn.Sequential:
    """Three convolutions, layers ``before`` and ``between`` the first and the second, and ``facts`` of the first."""
    torch.manual_seed(1)
    before = facts.pop("before", ())
    first = nn.Sequential(*before, nn.Conv2d(4, 8, **{"kernel_size": 3, "padding": 1, **facts}))
    second, third = nn.Conv2d(8, 6, 3, padding=1, stride=2), nn.Conv2d(6, 5, 5, padding=2, bias=False)
    net = nn.Sequential(
        first, *between, second, nn.BatchNorm2d(6), nn.ReLU6(), third, nn.SiLU(), nn.Flatten(), nn.LazyLinear(1)
    )
    net.append(nn.Flatten(0))
    net(IMAGES)
    return net.eval().requires_grad_(False)


def frozen_of(net: nn.Module) -> ops.Frozen:
    return ops.freeze(net, IMAGES[:1].expand(AT_ONCE, -1, -1, -1).contiguous(memory_format=torch.channels_last))


def found(net: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what ``net`` gives of ROWS by patches, and of images that were made first."""
    frozen = frozen_of(net)
    one = ops.Windowed.of(frozen, BOXES, (SIDE, SIDE))
    assert one is not None
    by_patches, fn = [], one.on(IMAGES, ABSENT, ROWS, AT_ONCE)
    for start in range(0, len(ROWS), AT_ONCE):
        places = torch.arange(start, start + AT_ONCE).clamp(max=len(ROWS) - 1)
        by_patches.append(fn(places)[: len(ROWS) - start])
    whole = IMAGES[ROWS[:, 0]].clone()
    for row, (image, window) in zip(whole, ROWS, strict=True):
        top, bottom, left, right = BOXES[window]
        row[:, top:bottom, left:right] = ABSENT[image, :, top:bottom, left:right]
    with torch.no_grad():
        return torch.cat(by_patches), net(whole)


def steps_of(net: nn.Module) -> int:
    """Return how many convolutions are computed by patches; 0 where it is none."""
    one = ops.Windowed.of(frozen_of(net), BOXES, (SIDE, SIDE))
    return 0 if one is None else len(one._steps)


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"kernel_size": 1, "padding": 0},
        {"kernel_size": 4, "stride": 2},
        {"kernel_size": 3, "stride": 3, "padding": 0},  # the last two pixels of a side are read by nothing
        {"kernel_size": (5, 2), "padding": (0, 3), "stride": (1, 2)},
        {"dilation": 2, "padding": 2},
        {"groups": 4},
        {"bias": False, "stride": 4},
        {"before": [nn.ZeroPad2d((1, 2, 0, 3))], "stride": 2},
    ],
    ids=str,
)
def test_patches_give_what_whole_images_give(facts):
    ours, known = found(conv(nn.LeakyReLU(0.2), **facts))
    torch.testing.assert_close(ours, known, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("act", [nn.Tanh(), nn.ReLU(inplace=True), nn.Hardtanh(-0.1, 0.3), nn.Sigmoid(), nn.Identity()])
def test_elementwise_layers_are_applied_to_patches(act):
    net = conv(act, act)
    assert steps_of(net) == 3
    ours, known = found(net)
    torch.testing.assert_close(ours, known, rtol=CLOSE, atol=CLOSE)


def test_what_scales_an_image_first_scales_what_stands_in_windows():
    net = Scaled().eval()
    assert steps_of(net) >= 1
    ours, known = found(net)
    torch.testing.assert_close(ours, known, rtol=CLOSE, atol=CLOSE)


def test_many_places_are_looked_up_pass_by_pass(monkeypatch):
    ours, _ = found(conv())
    monkeypatch.setattr(windowed, "MOST_LINES", 0)
    again, _ = found(conv())
    assert torch.equal(ours, again)


def test_weights_are_those_of_now():
    net = Scaled().eval()
    frozen = frozen_of(net)
    one = ops.Windowed.of(frozen, BOXES, (SIDE, SIDE))
    places = torch.arange(AT_ONCE)
    before = one.on(IMAGES, ABSENT, ROWS, AT_ONCE)(places)
    for tensor in (net.mean, net.net[0][0].weight, net.net[-2].weight, net.net[-2].bias):
        tensor.data.add_(0.3)
    after = one.on(IMAGES, ABSENT, ROWS, AT_ONCE)(places)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, found(net)[1][:AT_ONCE], rtol=CLOSE, atol=CLOSE)


class Residual(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x.mean(dim=(1, 2, 3))


def test_only_leading_layers_with_small_patches_are_computed_so(monkeypatch):
    assert steps_of(conv()) == 3
    monkeypatch.setattr(windowed, "WORTH", 0.4)
    assert steps_of(conv()) == 2  # of the map behind the third, of 12x12, 8x8 have changed
    assert steps_of(conv(nn.AvgPool2d(2))) == 1
    assert steps_of(Residual(*conv())) == 0  # what it adds sees the whole image
    assert steps_of(conv(before=[nn.ConstantPad2d(1, 0.5)])) == 0
    assert steps_of(conv(before=[nn.ZeroPad2d(1), nn.Tanh()])) == 0
    small = nn.Sequential(nn.Conv2d(4, 8, 1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 11 * 11, 1), nn.Flatten(0))
    assert steps_of(small.eval()) == 0  # looking a place up costs more than 32 multiplications
    whole = torch.tensor([[0, SIDE, 0, SIDE]])
    assert ops.Windowed.of(frozen_of(conv()), whole, (SIDE, SIDE)) is None
    monkeypatch.setattr(windowed, "MOST_NUMBERS", 9_000)  # of the image, its windows and two maps 9,328
    assert steps_of(conv()) == 0
