"""Critics that the fused penalty must not take: each is refused with a reason, and its gradients are still exact."""

from __future__ import annotations

import pytest
import torch
from penalty_cases import BiasAct, assert_same, penalty_and_gradients, seeded_biases
from torch import nn

from ganscale import ops
from ganscale.ops.penalty import plan as penalty_plan


class MinibatchDeviation(nn.Module):
    """Karras et al. 2018: one more channel, the standard deviation over the batch."""

    def forward(self, x):
        deviation = x.std(dim=0, unbiased=False).mean()
        return torch.cat([x, deviation.expand(len(x), 1, *x.shape[2:])], 1)


class Reversed(torch.autograd.Function):
    """A derivative that is not that of the calls one sees."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return -3 * g


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def _frozen_noise(x):
    with torch.no_grad():
        scale = x.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    return x * scale


def _in_place_on_a_view(x):
    x = x * 1.5
    x[:, 1:4].relu_()
    return x.tanh()


def _catching(x):
    try:
        return Reversed.apply(x)
    except BaseException:
        return x


REFUSED = {
    "batch norm": (lambda: nn.BatchNorm2d(6), "BatchNorm2d at middle calls batch_norm, which mixes samples"),
    "instance norm": (lambda: nn.InstanceNorm2d(6, affine=True), "InstanceNorm2d at middle calls instance_norm"),
    "group norm": (lambda: nn.GroupNorm(2, 6), "GroupNorm at middle calls group_norm, which divides by statistics"),
    "layer norm": (lambda: nn.LayerNorm(5), "LayerNorm at middle calls layer_norm"),
    "softplus": (lambda: nn.Softplus(), "Softplus at middle calls softplus, which is smooth, not piecewise linear"),
    "silu": (lambda: nn.SiLU(), "SiLU at middle calls silu, which is smooth"),
    "gelu": (lambda: nn.GELU(), "GELU at middle calls gelu, which is smooth"),
    "tanh": (lambda: nn.Tanh(), "Tanh at middle calls tanh, which is smooth"),
    "our tanh": (lambda: BiasAct(6, "tanh"), "BiasAct at middle calls tanh, which is smooth"),
    "max pool": (lambda: nn.MaxPool2d(3, 1, 1), "MaxPool2d at middle calls max_pool2d, which picks values"),
    "learned slope": (lambda: nn.PReLU(6), "PReLU at middle calls prelu, which has a slope that is learned"),
    "negative slope": (lambda: nn.LeakyReLU(-0.3), "LeakyReLU at middle has a negative slope of -0.3"),
    "circular padding": (lambda: nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular"), "pads by mode circular"),
    "minibatch deviation": (lambda: MinibatchDeviation(), "MinibatchDeviation at middle calls std"),
    "a product of x with itself": (lambda: Call(lambda x: x * x.mean((2, 3), keepdim=True)), "multiplies values"),
    "a mean over the batch": (lambda: Call(lambda x: x - x.mean(0, keepdim=True)), "works along the batch axis"),
    "a function of its own": (lambda: Call(Reversed.apply), "Call at middle calls a torch.autograd.Function"),
    "a part without a gradient": (lambda: Call(_frozen_noise), "Call at middle runs with gradients off"),
    "a detached part": (lambda: Call(lambda x: x * x.detach().abs()), "calls detach, which is not in the table"),
    "a branch on values": (lambda: Call(lambda x: x if x.sum() > 0 else 2 * x), "over the batch axis"),
    "other dtypes": (lambda: Call(lambda x: x.float().double()), "Call at middle changes the dtype"),
    "batches joined": (lambda: Call(lambda x: torch.cat([x, x])[: len(x)]), "works along the batch axis"),
    "batches mixed": (lambda: Call(lambda x: x.reshape(2, -1).reshape(x.shape)), "reshapes across the batch"),
    "a part in place": (lambda: Call(_in_place_on_a_view), "writes into a value that is used elsewhere"),
    "a caught exception": (lambda: Call(_catching), "calls a torch.autograd.Function, whose backward is its own"),
}


def _critic(name):
    torch.manual_seed(0)
    critic = nn.Sequential()
    critic.add_module("before", nn.Sequential(nn.Conv2d(3, 6, 4, 2, 1), nn.LeakyReLU(0.2)))
    critic.add_module("middle", REFUSED[name][0]())
    channels = 7 if name == "minibatch deviation" else 6
    critic.add_module("after", nn.Sequential(nn.Conv2d(channels, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(45, 1)))
    return seeded_biases(critic.double())


@pytest.mark.parametrize("name", REFUSED)
def test_a_critic_that_is_not_piecewise_linear_is_refused_and_its_gradients_are_exact(name):
    x = torch.randn(4, 3, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    choice = ops.explain_choice(_critic(name), x)
    assert choice.path == "piecewise"
    assert REFUSED[name][1] in choice.reason
    found = []
    for impl in ("auto", "reference"):
        critic = _critic(name)
        found.append(penalty_and_gradients(critic, x, impl, list(critic.parameters()), center=0.1))
        found[-1] = (*found[-1], [b.clone() for b in critic.buffers()])
    assert_same(*found)
    for a, b in zip(found[0][2], found[1][2], strict=True):
        assert torch.equal(a, b)  # running statistics moved once


@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU])
def test_activations_in_place_of_a_refused_critic_are_exact(act):
    x = torch.randn(4, 3, 10, 10, dtype=torch.float64)
    found = []
    for impl in ("auto", "reference"):
        critic = _critic("batch norm")
        critic.before[1] = critic.after[1] = act(inplace=True)
        inner = nn.Sequential(nn.BatchNorm2d(6), act(inplace=True), nn.Softplus(), nn.Dropout(0.0), act(inplace=True))
        critic.middle = inner.double()
        found.append(penalty_and_gradients(critic, x, impl, list(critic.parameters()), center=0.1))
    assert_same(*found)


def test_active_dropout_draws_as_in_an_ordinary_pass():
    critic = _critic("softplus")
    critic.middle = nn.Dropout(0.5)
    x = torch.randn(4, 3, 10, 10, dtype=torch.float64)
    assert "Dropout at middle calls dropout, which draws at random" in ops.explain_choice(critic, x).reason
    found = []
    for impl in ("auto", "reference"):
        torch.manual_seed(7)
        found.append(penalty_and_gradients(critic, x, impl, list(critic.parameters())))
        found[-1] = (*found[-1], torch.rand(1))
    assert_same(*found)
    assert torch.equal(found[0][2], found[1][2])
    critic.eval()
    assert ops.explain_choice(critic, x).path == "fused"


@pytest.mark.parametrize("kind", ["forward", "forward pre", "full backward", "full backward pre"])
def test_a_module_with_hooks_is_refused_and_its_hooks_run_as_ever(kind):
    x = torch.randn(4, 3, 10, 10, dtype=torch.float64)
    found = []
    for impl in ("auto", "reference"):
        critic, seen = _critic("tanh"), []
        critic.middle = nn.ReLU()
        assert ops.explain_choice(critic, x).path == "fused"
        register = getattr(critic.middle, f"register_{kind.replace(' ', '_')}_hook")
        register(lambda *arguments, seen=seen: seen.append(len(arguments)))
        assert "ReLU at middle has hooks" in ops.explain_choice(critic, x).reason
        found.append(penalty_and_gradients(critic, x, impl, list(critic.parameters())))
        found[-1] = (*found[-1], seen)
    assert_same(*found)
    assert found[0][2] == found[1][2] != []


def test_a_hook_that_changes_the_output_is_heeded():
    x = torch.randn(4, 3, 10, 10, dtype=torch.float64)
    critic = _critic("tanh")
    critic.middle = nn.Identity()
    critic.middle.register_forward_hook(lambda module, inputs, output: output * output)
    parameters = list(critic.parameters())
    ours = penalty_and_gradients(critic, x, "auto", parameters)
    assert_same(ours, penalty_and_gradients(critic, x, "reference", parameters))


def test_a_subclass_with_a_forward_of_its_own_is_seen_as_what_it_does():
    class Squared(nn.LeakyReLU):
        def forward(self, x):
            return super().forward(x).square()

    x = torch.randn(4, 3, 10, 10, dtype=torch.float64)
    critic = _critic("tanh")
    critic.middle = Squared(0.2)
    assert "Squared at middle calls square, which is smooth" in ops.explain_choice(critic, x).reason
    parameters = list(critic.parameters())
    ours = penalty_and_gradients(critic, x, "auto", parameters)
    assert_same(ours, penalty_and_gradients(critic, x, "reference", parameters))


def test_code_below_the_level_of_torch_functions_runs_as_ever():
    x = torch.randn(4, 3, 10, 10, dtype=torch.float64)
    critic = _critic("tanh")
    traced = torch.jit.trace(nn.Softplus(), x[:, :, :5, :5])
    for middle, reason in ((Call(torch.vmap(lambda a: a * a.mean())), "below the level"), (traced, "ScriptMethod")):
        critic.middle = middle
        assert reason in ops.explain_choice(critic, x).reason
        parameters = list(critic.parameters())
        ours = penalty_and_gradients(critic, x, "auto", parameters)
        assert_same(ours, penalty_and_gradients(critic, x, "reference", parameters))


def test_an_input_that_the_weights_depend_on_is_refused():
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)

    def critic(t):
        return (t * x).sum(1)  # with t = x this is |x|^2, whose gradient is 2 x and not x

    assert "may depend on it" in ops.explain_choice(critic, x).reason
    ours, plain = (ops.gradient_penalty(critic, x, impl=impl, center=0.0) for impl in ("auto", "reference"))
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(ours, 4 * x.square().sum(1))


def test_the_choice_says_when_nothing_is_watched():
    x = torch.randn(4, 6)
    assert ops.explain_choice(nn.Linear(6, 1), x, impl="reference").path == "autograd"
    small = ops.explain_choice(nn.Linear(6, 1), x)
    assert (small.path, small.reason) == ("autograd", "28 multiplications a pass are too few to gain")
    assert ops.explain_choice(nn.Linear(6, 1), x[:0]).reason == "there are no samples"
    many = torch.randn(penalty_plan.PAYS_FROM // 4, 6)
    assert ops.explain_choice(nn.Linear(6, 1), many).path == "fused"


@pytest.mark.parametrize("middle", [nn.ReLU, nn.Softplus])
def test_every_parameter_that_the_logits_depend_on_gets_a_gradient(middle):
    critic, x = _critic("tanh"), torch.randn(4, 3, 10, 10, dtype=torch.float64)
    critic.middle = middle()
    critic.unused = nn.Linear(2, 2)
    critic.forward = lambda x: critic.after(critic.middle(critic.before(x)))
    ops.gradient_penalty(critic, x).mean().backward()
    for name, parameter in critic.named_parameters():
        assert (parameter.grad is None) == name.startswith("unused")
    assert not critic.after[3].bias.grad.any()  # it moves the logits, and no gradient of theirs
