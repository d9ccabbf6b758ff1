"""A watched pass has every effect of an ordinary one, and what was known of a critic before cannot mislead."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from penalty_cases import assert_same, case, penalty_and_gradients
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from ganscale import errors, ops
from ganscale.ops.penalty import plan as penalty_plan


@pytest.fixture(autouse=True)
def _watched(monkeypatch):
    monkeypatch.setattr(penalty_plan, "PAYS_FROM", 0)


def assert_agrees(critic, x, path="fused"):
    """The choice, and that penalties and gradients are those of plain autograd on a copy."""
    assert ops.explain_choice(critic, x).path == path
    other = copy.deepcopy(critic)
    ours = penalty_and_gradients(critic, x, "auto", list(critic.parameters()), center=0.1)
    assert_same(ours, penalty_and_gradients(other, x, "reference", list(other.parameters()), center=0.1))
    for a, b in zip(critic.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)


def test_changes_after_a_call_are_noticed():
    critic, x = case("k4s2p1-16")
    assert_agrees(critic, x)
    critic[1].negative_slope = 0.7
    assert_agrees(critic, x)
    critic[3] = nn.Tanh()
    assert_agrees(critic, x, "piecewise")
    critic[3] = nn.ReLU()
    critic[2].stride, critic[2].padding = (1, 1), (0, 0)
    critic[4] = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(8, 1, 5)).double().eval()
    assert_agrees(critic, x)
    critic[4].train()
    assert ops.explain_choice(critic, x).path == "piecewise"
    critic[4].eval()
    assert_agrees(critic, x)
    handle = critic[0].register_forward_hook(lambda module, inputs, output: output.tanh())
    assert_agrees(critic, x, "piecewise")
    handle.remove()
    assert_agrees(critic, x)
    critic[0].weight = nn.Parameter(torch.randn_like(critic[0].weight))
    assert_agrees(critic, x)
    critic.forward = lambda x: nn.Sequential.forward(critic, x).square()
    assert ops.explain_choice(critic, x).path == "piecewise"


def test_explaining_changes_nothing():
    critic, x = case("spectral-norm")
    before = [b.clone() for b in critic.buffers()]
    state = torch.random.get_rng_state()
    ops.explain_choice(nn.Sequential(nn.Unflatten(1, (2, 1)), nn.Flatten(), critic, nn.Dropout(0.5)), x)
    ops.explain_choice(critic, x)
    for a, b in zip(critic.buffers(), before, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(torch.random.get_rng_state(), state)


class Frozen(nn.Module):
    def forward(self, x):
        with torch.no_grad():
            scale = x.abs().mean((1, 2, 3), keepdim=True)
        return x / scale


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


class OfItsOwn(nn.Module):
    def forward(self, x):
        return Doubled.apply(x)


@pytest.mark.parametrize("act", [nn.ReLU, nn.Softplus, Frozen, OfItsOwn])
def test_a_power_iteration_takes_one_step_a_pass(act):
    critic, x = case("spectral-norm")
    critic[3] = act()
    if act is OfItsOwn:  # the first pass runs twice, and none after it
        ops.gradient_penalty(critic, x)
    for _ in range(3):
        assert_agrees(critic, x, "fused" if act is nn.ReLU else "piecewise")


def test_other_parametrisations_and_hooks_that_make_weights_are_followed():
    critic, x = case("k4s2p1-16")
    orthogonal(critic[0])
    weight_norm(critic[2])
    assert_agrees(critic, x)


def test_hooks_that_make_weights_are_followed():
    found = []
    for impl in ("auto", "reference"):
        critic, x = case("k4s2p1-16")
        torch.nn.utils.spectral_norm(critic[0])
        torch.nn.utils.weight_norm(critic[2])
        assert ops.explain_choice(critic, x).path == "fused"
        for _ in range(2):
            found.append(penalty_and_gradients(critic, x, impl, list(critic.parameters())))
    assert_same(found[0], found[2])
    assert_same(found[1], found[3])


def test_a_weight_that_depends_on_a_parametrisation_of_its_own_is_evaluated_anew():
    class Scaled(nn.Module):
        scale = 1.0

        def forward(self, w):
            return self.scale * w

    critic, x = case("k4s2p1-16")
    scaled = Scaled()
    parametrize.register_parametrization(critic[2], "weight", scaled)
    assert_agrees(critic, x)
    scaled.scale = 3.0
    assert_agrees(critic, x)


class Keeping(nn.Module):
    """A critic that keeps its features, as feature matching wants them."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(2, 4, 3), nn.Linear(4, 1)

    def forward(self, x):
        self.features = F.relu(self.conv(x))
        return self.out(self.features.mean((2, 3)))


def test_values_that_a_critic_keeps_can_be_used_afterwards():
    critic, x = Keeping().double(), torch.randn(3, 2, 5, 5, dtype=torch.float64)
    assert ops.explain_choice(critic, x).path == "fused"
    ops.gradient_penalty(critic, x)
    kept = critic.features.mean()
    torch.testing.assert_close(kept, F.relu(critic.conv(x)).mean())
    (ours,) = torch.autograd.grad(kept, critic.conv.weight)
    (plain,) = torch.autograd.grad(F.relu(critic.conv(x)).mean(), critic.conv.weight)
    torch.testing.assert_close(ours, plain)


def test_kept_values_are_refused_once_a_parameter_has_changed():
    critic, x = Keeping().double(), torch.randn(3, 2, 5, 5, dtype=torch.float64)
    ops.gradient_penalty(critic, x).mean().backward()
    torch.optim.SGD(critic.parameters(), lr=0.1).step()
    with pytest.raises(errors.UserError, match="before the critic's parameters change"):
        critic.features.mean()


def test_a_value_that_is_written_in_place_after_others_have_read_it_keeps_its_old_number_for_them():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3)

        def forward(self, x):
            h = self.conv(x)
            twice = 2 * h
            view = h.flatten(1)
            F.leaky_relu(h, 0.1, inplace=True)
            return twice.sum((1, 2, 3)) + view.mean(1) + h.sum((1, 2, 3))

    critic, x = InPlace().double(), torch.randn(3, 2, 5, 5, dtype=torch.float64)
    assert "writes into a value that is used elsewhere" in ops.explain_choice(critic, x).reason
    parameters = list(critic.parameters())
    ours = penalty_and_gradients(critic, x, "auto", parameters)
    assert_same(ours, penalty_and_gradients(critic, x, "reference", parameters))


def test_a_mistake_in_a_critic_is_reported_as_ever():
    critic = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(7, 1))
    x = torch.randn(2, 3, 8, 8)
    messages = []
    for impl in ("auto", "reference"):
        with pytest.raises(RuntimeError) as caught:
            ops.gradient_penalty(critic, x, impl=impl)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]

    def failing(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        ops.gradient_penalty(failing, x)
    assert ops.explain_choice(nn.Conv2d(3, 1, 3), x).path == "fused"  # nothing is left behind


def test_modules_can_be_told_by_type_shape_and_device():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3)

        def forward(self, x):
            assert isinstance(x, torch.Tensor)
            assert x.is_floating_point()
            assert not x.is_cuda
            assert x.device == self.conv.weight.device
            h = self.conv(x)
            assert h.ndim == h.dim() == 4
            assert len(h) == h.size(0) == h.shape[0]
            assert h.requires_grad
            assert h.dtype == torch.float64
            return F.relu(h).view(h.size(0), -1).sum(-1)

    assert_agrees(Asking().double(), torch.randn(3, 2, 5, 5, dtype=torch.float64))


def test_a_compiled_critic_is_taken_as_it_was_written():
    critic, x = case("k4s2p1-16")
    compiled = torch.compile(critic, backend="aot_eager")
    parameters = list(critic.parameters())
    assert ops.explain_choice(compiled, x).path == "fused"
    ours = penalty_and_gradients(compiled, x, "auto", parameters)
    assert_same(ours, penalty_and_gradients(critic, x, "reference", parameters))
    critic[0].compile(backend="aot_eager")
    ours = penalty_and_gradients(critic, x, "auto", parameters)
    assert_same(ours, penalty_and_gradients(critic, x, "reference", parameters))


@pytest.mark.parametrize("name", ["k4s2p1-16", "smooth"])
def test_a_penalty_inside_compiled_code_is_the_same(name):
    critic, x = case("k4s2p1-16")
    if name == "smooth":
        critic[1] = nn.Softplus()

    def loss(x):
        return 10 * ops.gradient_penalty(critic, 2 * x).mean() + critic(x).mean()

    torch._dynamo.reset()
    found = []
    for call in (torch.compile(loss, backend="aot_eager"), loss):
        value = call(x)
        found.append(([value.detach()], torch.autograd.grad(value, list(critic.parameters()), allow_unused=True)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-14)


def test_a_penalty_inside_a_functional_transform_is_refused_and_not_wrong():
    critic, x = case("k4s2p1-16")
    parameters = {name: p.detach() for name, p in critic.named_parameters()}

    def loss(parameters, x):
        return ops.gradient_penalty(lambda t: torch.func.functional_call(critic, parameters, (t,)), x).sum()

    for point in (x, x.clone().requires_grad_()):
        with pytest.raises((RuntimeError, errors.UserError)):
            torch.func.grad(loss)(parameters, point)


def test_weights_given_by_a_functional_call_are_followed():
    critic, x = case("k4s2p1-16")
    parameters = {name: (2 * p.detach()).requires_grad_() for name, p in critic.named_parameters()}

    def doubled(t):
        return torch.func.functional_call(critic, parameters, (t,))

    assert ops.explain_choice(doubled, x).path == "fused"
    ours = penalty_and_gradients(doubled, x, "auto", list(parameters.values()))
    assert_same(ours, penalty_and_gradients(doubled, x, "reference", list(parameters.values())))


def test_spectral_norm_of_a_shared_module_steps_as_often_as_it_is_used():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = spectral_norm(nn.Conv2d(2, 2, 3, padding=1))

        def forward(self, x):
            return self.conv(F.relu(self.conv(x))).flatten(1)

    torch.manual_seed(0)
    assert_agrees(Twice().double(), torch.randn(3, 2, 5, 5, dtype=torch.float64))


class Noisy(nn.Module):
    """Writes into what it has read: a buffer of noise that is drawn anew after its use."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw
        self.conv, self.out = nn.Conv2d(2, 4, 3), nn.Linear(36, 1)
        self.register_buffer("noise", torch.ones(4, 3, 3))

    def forward(self, x):
        h = self.conv(x) + self.noise
        with torch.no_grad():
            self.draw(self.noise)
        return self.out(F.relu(h).flatten(1))


@pytest.mark.parametrize(
    "draw",
    [
        lambda noise: noise.normal_(),
        lambda noise: noise[0].fill_(-3.0),
        lambda noise: noise.__setitem__(0, -3.0),
        lambda noise: torch.randn(noise.shape, out=noise),
        lambda noise: nn.init.constant_(noise, -3.0),
        lambda noise: torch._foreach_mul_([noise], -3.0),
    ],
)
def test_a_weight_that_is_written_after_it_was_read_counts_as_it_was(draw):
    torch.manual_seed(0)
    critic, x = Noisy(draw).double(), torch.randn(3, 2, 5, 5, dtype=torch.float64)
    other = copy.deepcopy(critic)
    assert "writes into a weight that it has read" in ops.explain_choice(critic, x).reason
    found = []
    for impl, module in (("auto", critic), ("reference", other)):
        torch.manual_seed(1)
        found.append(penalty_and_gradients(module, x, impl, [module.conv.weight, module.out.weight]))
    assert_same(*found)
    assert torch.equal(critic.noise, other.noise)


def test_hooks_are_seen_whatever_way_a_module_is_called():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(2, 4, 3), nn.ReLU()

        def forward(self, x):
            return self.act(input=self.conv(input=x)).flatten(1)

    critic, x = ByName().double(), torch.randn(3, 2, 5, 5, dtype=torch.float64)
    assert_agrees(critic, x)
    handle = critic.act.register_full_backward_hook(lambda module, to_input, to_output: (to_input[0] * 2,))
    assert "has hooks" in ops.explain_choice(critic, x).reason
    handle.remove()
    with_hook = nn.modules.module.register_module_forward_hook(lambda module, args, output: output * 2)
    try:
        assert ops.explain_choice(critic, x).reason == "there are global module hooks"
        parameters = list(critic.parameters())
        ours = penalty_and_gradients(critic, x, "auto", parameters)
        assert_same(ours, penalty_and_gradients(critic, x, "reference", parameters))
    finally:
        with_hook.remove()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_parts_are_left_to_torch(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(2, 4, 3), nn.Linear(36, 1)

        def forward(self, x):
            h = checkpoint(lambda h: F.relu(self.conv(h)).tanh(), x, use_reentrant=reentrant)
            return self.out(h.flatten(1))

    critic, x = Checkpointed().double(), torch.randn(3, 2, 5, 5, dtype=torch.float64)
    if reentrant:  # torch itself cannot differentiate it twice
        for impl in ("auto", "reference"):
            with pytest.raises(RuntimeError, match="checkpoint"):
                ops.gradient_penalty(critic, x, impl=impl)
    else:
        assert "changes how tensors are saved" in ops.explain_choice(critic, x).reason
        parameters = list(critic.parameters())
        ours = penalty_and_gradients(critic, x, "auto", parameters)
        assert_same(ours, penalty_and_gradients(critic, x, "reference", parameters))


def test_code_that_wants_the_memory_of_x_gets_it():
    def critic(x):
        offset = torch.from_numpy(x.detach().numpy()).mean().item()
        assert x.data_ptr() != 0
        return (x * offset).sum((1, 2, 3))

    x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    ours, plain = (ops.gradient_penalty(critic, x, impl=impl) for impl in ("auto", "reference"))
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=0)


def test_any_callable_may_be_a_critic():
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64)

    class Odd:
        __hash__ = None

        def __call__(self, x):
            return Doubled.apply(x).flatten(1)

        def method(self, x):
            return Doubled.apply(x).flatten(1)

    for critic in (Odd(), Odd().method, functools.partial(Odd.method, None), lambda x: Doubled.apply(x).sum((1, 2, 3))):
        for _ in range(2):
            penalty = ops.gradient_penalty(critic, x, center=0.0)
            torch.testing.assert_close(penalty, torch.full((3,), 200.0, dtype=torch.float64))
