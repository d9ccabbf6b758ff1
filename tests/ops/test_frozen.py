"""A frozen function gives the values of the plain one, follows its weights, and is refused where it could not."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode

from ganscale import ops

ACTIVATIONS = {
    "relu": nn.ReLU(),
    "relu in place": nn.ReLU(inplace=True),
    "leaky relu": nn.LeakyReLU(0.3),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(-0.2, 0.5),
    "silu": nn.SiLU(),
    "tanh, which is left as it is": nn.Tanh(),
}


def critic(activation: nn.Module = ACTIVATIONS["leaky relu"], **conv: object) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, **conv),
        activation,
        nn.Conv2d(8, 8, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        activation,
        nn.Conv2d(8, 8, 3, dilation=2),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 1),
        nn.Flatten(0),
    )
    net(pictures(32))  # the batch norm sees something
    return net.eval().requires_grad_(False)


def pictures(count: int = 6, side: int = 16) -> torch.Tensor:
    return torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(count))


class Called(TorchDispatchMode):
    """Lists the operators that are called."""

    def __enter__(self):
        self.names: list[str] = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def names_of(fn, rows) -> list[str]:
    with Called() as called:
        fn(rows)
    return called.names


def assert_same(frozen, net, rows, tolerance=1e-5) -> None:
    with torch.no_grad():
        torch.testing.assert_close(frozen(rows), net(rows), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_gives_the_values_of_the_plain_one_on_other_rows(activation, layout):
    net, rows = critic(ACTIVATIONS[activation]), pictures()
    frozen = ops.freeze(net, rows.contiguous(memory_format=layout))
    assert len(frozen.packed) == 3
    assert_same(frozen, net, (3 * rows.flip(0)).contiguous(memory_format=layout))


@pytest.mark.parametrize("conv", [{"groups": 4}, {"bias": False}, {"padding_mode": "reflect"}], ids=str)
def test_convolutions_of_every_kind_are_packed(conv):
    net, rows = critic(**conv), pictures()
    frozen = ops.freeze(net, rows)
    assert len(frozen.packed) == 3
    assert_same(frozen, net, pictures(6) * 2)


def test_norms_and_activations_take_no_pass_of_their_own():
    net, rows = critic(), pictures()
    plain, frozen = names_of(net, rows), names_of(ops.freeze(net, rows), rows)
    assert plain.count("aten::leaky_relu") == 2
    assert plain.count("aten::native_batch_norm") == 1
    assert frozen.count("mkldnn::_convolution_pointwise") == 3
    assert not {"aten::leaky_relu", "aten::native_batch_norm", "aten::convolution"} & set(frozen)


def test_what_is_looked_at_twice_is_not_taken_into_the_convolution():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            y = self.conv(x)
            return (y + torch.relu(y)).mean(dim=(1, 2, 3))

    net, rows = Residual(), pictures()
    frozen = ops.freeze(net, rows)
    assert len(frozen.packed) == 1
    assert "aten::relu" in names_of(frozen, rows)
    assert_same(frozen, net, rows * 2)


def test_it_follows_weights_that_change_in_place_and_back():
    net, rows = critic(), pictures()
    frozen = ops.freeze(net, rows)
    before = frozen(rows)
    saved = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for name in ("0.weight", "3.running_mean", "5.bias", "7.weight"):
        net.get_parameter(name).data.mul_(1.5) if "running" not in name else net.get_buffer(name).add_(0.5)
        with torch.no_grad():
            assert not torch.equal(net(rows), before)
        assert_same(frozen.follow(), net, rows)
    net.load_state_dict(saved)
    assert torch.equal(frozen.follow()(rows), before)


def test_a_layer_that_is_used_again_is_packed_once():
    torch.manual_seed(0)
    net = nn.Conv2d(4, 4, 3, padding=1).eval()
    frozen = ops.freeze(lambda x: net(net(x)).mean((1, 2, 3)) + net(x.flip(3)).mean((1, 2, 3)), pictures())
    assert len(frozen.packed) == 1


def test_a_residual_that_is_added_in_place_is_taken_as_it_is():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)).eval()

    def block(x):
        y = net(x)
        y += x
        return torch.relu_(y).mean((1, 2, 3))

    frozen = ops.freeze(block, pictures())
    assert len(frozen.packed) == 1
    assert_same(frozen, block, pictures() * 3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_activation_makes_a_number_of_a_nan(activation):
    net = critic(ACTIVATIONS[activation])
    frozen, rows = ops.freeze(net, pictures()), pictures()
    rows[2, 1, 5, 5] = torch.nan
    with torch.no_grad():
        assert torch.equal(frozen(rows.clone()).isnan(), net(rows.clone()).isnan())


def test_neither_the_rows_nor_what_was_computed_of_them_is_changed_or_kept():
    net, rows = critic(), pictures()

    def scaled(x):
        x.sub_(0.1).mul_(2)
        return net(x)

    before = rows.clone()
    assert ops.freeze(scaled, rows) is None  # it writes to what it is given
    assert torch.equal(rows, before)
    frozen = ops.freeze(net, rows)
    held = [node.meta for graph in (frozen._traced.graph, frozen.graph.graph) for node in graph.nodes]
    assert not any(held)


def test_a_weight_that_is_computed_from_others_is_computed_once_and_again_when_they_change():
    torch.manual_seed(0)
    net = nn.Sequential(spectral_norm(nn.Conv2d(4, 4, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 1)).eval()
    rows = pictures()
    frozen = ops.freeze(net, rows)
    assert 3 <= len(names_of(frozen, rows)) < len(names_of(net, rows)) / 2
    with torch.no_grad():
        net[0].parametrizations.weight.original.mul_(torch.linspace(0.5, 2, 4).reshape(4, 1, 1, 1))
    assert_same(frozen.follow(), net, rows)


def test_the_models_of_this_package_are_frozen():
    from ganscale.models.dcgan import DCGANCritic

    net = DCGANCritic(channels=1, resolution=(28, 28), width=8).eval()
    rows = torch.randn(8, 1, 28, 28)
    frozen = ops.freeze(net, rows)
    assert len(frozen.packed) == 2
    assert_same(frozen, net, rows * 2)


def looks(x):
    return critic()(x) if float(x.detach().sum()) > 1e9 else critic()(-x)


def draws(x):
    return critic()(x + torch.randn_like(x))


def leaves(x):
    return critic()(torch.from_numpy(x.detach().numpy() * 2))


def no_convolution(x):
    return x.flatten(1).sum(1)


COUNTED = critic()


def counts(x):
    return COUNTED(x) * COUNTED[3].running_mean.add_(0.1).sum()


def one_hot(x):
    best = COUNTED[:1](x).mean((2, 3)).argmax(1, keepdim=True)
    return torch.zeros(len(x), 8).scatter_(1, best, 1.0).cumsum(1).sum(1)


def counts_a_view(x):
    COUNTED[3].running_mean[:1].add_(0.1)
    return COUNTED(x)


def clamps_a_view(x):
    y = COUNTED[0](x)
    y.view(len(x), -1).clamp_(max=0.8)
    return y.mean((1, 2, 3))


REFUSED = [looks, draws, leaves, no_convolution, counts, one_hot, counts_a_view, clamps_a_view]


@pytest.mark.parametrize("fn", REFUSED, ids=lambda fn: fn.__name__)
def test_what_cannot_be_traced_is_refused(fn):
    assert ops.freeze(fn, pictures()) is None


OTHERS = {"float64": pictures().double(), "bfloat16": pictures().bfloat16(), "no pictures": pictures().flatten(1)}


@pytest.mark.parametrize("rows", OTHERS.values(), ids=OTHERS)
def test_rows_of_other_kinds_are_refused(rows):
    net = critic()
    assert ops.freeze(lambda x: net(x.reshape(-1, 4, 16, 16).float()), rows) is None


def test_an_error_of_the_function_itself_is_raised():
    with pytest.raises(RuntimeError, match="expected input"):
        ops.freeze(critic(), torch.randn(2, 3, 16, 16))


def test_freezing_does_not_load_torchs_compiler():
    program = (
        "import sys, torch; from ganscale import ops; net = torch.nn.Conv2d(3, 4, 3).eval();"
        "assert ops.freeze(lambda x: net(x).sum((1, 2, 3)), torch.randn(2, 3, 8, 8)).packed;"
        "assert 'torch._dynamo' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_is_frozen_where_plain_torch_is_asked_for():
    net, rows = critic(), pictures()
    assert ops.freeze(net, rows) is not None
    with ops.using("reference"):
        assert ops.freeze(net, rows) is None
