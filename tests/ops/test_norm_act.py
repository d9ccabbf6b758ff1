"""Batch norm with its activation: equal to torch's over shapes, dtypes and layouts, to second order, over ranks.

N batch, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from ganscale import errors, ops
from ganscale.ops import norm, reference_norm
from tests.ops.test_equals_twin import ROUNDING

SHAPES = [(2, 1), (7, 3), (2, 600), (1, 3, 5, 7), (4, 5, 1, 1), (3, 1, 9, 4), (2, 3, 33, 31), (5, 17, 4, 4)]
SHAPES += [(600, 5, 1, 1), (16, 2, 1, 3), (4, 700, 2, 1), (1, 2, 150, 131), (2, 3, 3, 4, 5), (9, 24, 7, 7)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ACTIVATIONS = ["linear", "relu", "leaky_relu", "tanh"]

pytestmark = pytest.mark.skipif(not ops.build_info()["compiled"], reason="the compiled core is not built")


def _layouts(x):
    yield x
    if x.ndim == 4:
        yield x.contiguous(memory_format=torch.channels_last)
    yield x.transpose(0, 1).contiguous().transpose(0, 1)
    yield torch.stack([x, -x], dim=-1)[..., 0]


def _randn(shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _numbers(channels, dtype, seed=1):
    """gamma in [1, 2] and beta, in the type numbers a channel have."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    gamma = torch.rand(channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1
    return gamma.to(wide), _randn((channels,), wide, seed)


def _clear_of_the_kink(x, gamma, beta):
    """Move the values whose z is near 0 away from it: float32 may round them to the other side."""
    z = reference_norm.batch_norm_act(x.double(), gamma.double(), beta.double(), 1e-5, "linear", 0.2)[0]
    return x + (0.1 * (z.abs() < 0.02) * torch.where(z < 0, -1.0, 1.0)).to(x.dtype)


def assert_as_good_as_torch(ours, twin, exact, dtype, slack):
    """Our error against float64 is at most twice torch's, or a few roundings of numbers of order 1.

    Not of the result: a gradient through batch statistics is a difference that may cancel to nothing.
    """
    scale = exact.abs().max().clamp(min=1).item()
    ours_error, twin_error = ((t.double() - exact).abs().max().item() / scale for t in (ours, twin))
    assert (ours.dtype, ours.shape) == (twin.dtype, twin.shape)
    assert ours_error <= max(2 * twin_error, slack * ROUNDING[dtype])


def _run(impl, x, gamma, beta, activation, gy):
    x, gamma, beta = (t.detach().requires_grad_() for t in (x, gamma, beta))
    y, mean, variance = ops.batch_norm_act(x, gamma, beta, activation=activation, negative_slope=0.3, impl=impl)
    return y.detach(), mean, variance, *torch.autograd.grad(y, (x, gamma, beta), gy)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm_equals_torchs_forward_and_backward(shape, dtype, activation):
    gamma, beta = _numbers(shape[1], dtype)
    x, gy = _clear_of_the_kink(_randn(shape, dtype), gamma, beta), _randn(shape, dtype, 2)
    twin = _run("reference", x, gamma, beta, activation, gy)
    exact = _run("reference", *(t.double() for t in (x, gamma, beta)), activation, gy.double())
    wide = gamma.dtype
    for laid in _layouts(x):
        ours = _run("fused", laid, gamma, beta, activation, gy)
        for name, *three in zip(("y", "mean", "variance", "gx", "ggamma", "gbeta"), ours, twin, exact, strict=True):
            image = name in ("y", "gx")
            # Sums of up to 256 terms in the accumulation type; y and gx one rounding of their own dtype and what their
            # sums lack, which a small variance multiplies.
            slack = 4.0 if image and dtype.itemsize == 2 else 260.0
            if dtype == torch.float64:  # totals of squares lose mean^2 / variance roundings, here up to 2^20
                slack = 2.0**20
            assert_as_good_as_torch(*three, dtype if image else wide, slack=slack)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_pieces_equal_their_twins(shape, dtype):
    gamma, beta = _numbers(shape[1], dtype)
    x, gy = _clear_of_the_kink(_randn(shape, dtype), gamma, beta), _randn(shape, dtype, 2)
    totals = reference_norm.totals(x)
    _, stats = reference_norm.normalise(x, totals, gamma, beta, 1e-5, "relu", 0.2)
    sums, gradients = reference_norm.backward_sums(gy, x, stats, "relu", 0.2)
    gx = reference_norm.backward_input(gy, x, stats, torch.cat([sums, totals[-1:]]), "relu", 0.2)
    pieces = norm._bind_norm
    for laid in _layouts(x):
        torch.testing.assert_close(pieces.totals(laid), totals, rtol=1e-5, atol=1e-4)  # float32 blocks of 256
        torch.testing.assert_close(pieces.normalise(laid, totals, gamma, beta, 1e-5, "relu", 0.2)[1], stats)
        our_sums, our_gradients = pieces.backward_sums(gy, laid, stats, "relu", 0.2)
        scale = sums.abs().max().item()
        torch.testing.assert_close(our_sums[:-1], sums, rtol=1e-5, atol=1e-5 * scale)
        torch.testing.assert_close(our_gradients, gradients, rtol=1e-4, atol=1e-5 * scale)
        ours = pieces.backward_input(gy, laid, stats, torch.cat([sums, totals[-1:]]), "relu", 0.2)
        torch.testing.assert_close(ours.double(), gx.double(), rtol=2e-2 if dtype.itemsize == 2 else 1e-5, atol=1e-4)


def test_a_mean_of_a_thousand_standard_deviations_costs_no_accuracy():
    for layout in (torch.contiguous_format, torch.channels_last):
        x = (_randn((16, 8, 12, 12)) + 1000).float().contiguous(memory_format=layout)
        gamma, beta = _numbers(8, torch.float32)
        gy = _randn(x.shape, torch.float32, 3)
        exact = _run("reference", x.double(), gamma.double(), beta.double(), "linear", gy.double())
        y, mean, variance, gx, ggamma, gbeta = _run("fused", x, gamma, beta, "linear", gy)
        torch.testing.assert_close(mean.double(), exact[1], rtol=1e-7, atol=0)  # one rounding of 1000
        torch.testing.assert_close(variance.double(), exact[2], rtol=1e-5, atol=0)  # float32 blocks of 256
        for ours, true in ((y, exact[0]), (gx, exact[3])):
            assert (ours - true).abs().max() <= 2e-5 * true.abs().max()
        torch.testing.assert_close(ggamma.double(), exact[4], rtol=1e-3, atol=3e-2)  # x - mean carries mean's rounding
        torch.testing.assert_close(gbeta.double(), exact[5], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(3, 2, 2, 2), (5, 3), (2, 2, 4, 5)], ids=str)
def test_first_and_second_derivatives_are_exact(shape, activation):
    gamma, beta = _numbers(shape[1], torch.float64)
    x = _clear_of_the_kink(_randn(shape), gamma, beta)
    for laid in (x, x.contiguous(memory_format=torch.channels_last)) if len(shape) == 4 else (x,):
        inputs = [t.detach().requires_grad_() for t in (laid, gamma, beta)]
        _, stats = reference_norm.normalise(x, reference_norm.totals(x), gamma, beta, 1e-5, activation, 0.2)
        known = [t.clone().requires_grad_() for t in (laid, stats[1], stats[2])]

        def batch(x, gamma, beta):
            return ops.batch_norm_act(x, gamma, beta, activation=activation, impl="fused")[0]

        def constant(x, scale, shift, stats=stats):
            return ops.affine_act(x, scale, shift, mean=stats[0], activation=activation, impl="fused")

        for function, arguments in ((batch, inputs), (constant, known)):
            assert torch.autograd.gradcheck(function, arguments)
            assert torch.autograd.gradgradcheck(function, arguments)


def test_gamma_and_beta_may_be_absent():
    x = _randn((4, 3, 5, 5)).requires_grad_()
    ours, twin = (ops.batch_norm_act(x, None, None, activation="tanh", impl=i)[0] for i in ("fused", "reference"))
    torch.testing.assert_close(ours, twin)
    gy = _randn(x.shape, seed=5)
    torch.testing.assert_close(torch.autograd.grad(ours, x, gy), torch.autograd.grad(twin, x, gy))


def test_opcheck_finds_nothing_wrong():
    x = _randn((2, 3, 4, 5), torch.float32).requires_grad_()
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    odd = _randn((4, 3, 2, 5), torch.float32).transpose(0, 2)
    for t in (x, last, odd):
        numbers = [n.requires_grad_() for n in _numbers(t.shape[1], torch.float32)]
        stats = torch.rand(6, t.shape[1])
        cases = [
            (norm._batch_norm_act, (t, *numbers, 1e-5, "leaky_relu", 0.2)),
            (norm._batch_norm_act, (t, None, None, 1e-5, "tanh", 0.2)),
            (norm._batch_norm_act_backward, (t.detach(), t.detach(), stats, "relu", 0.2)),
            (norm._affine_act, (t, None, *numbers, "relu", 0.2)),
            (norm._affine_act_backward, (t.detach(), t.detach(), None, *stats[:2], "relu", 0.2, True)),
        ]
        for operator, arguments in cases:
            assert set(torch.library.opcheck(operator, arguments).values()) == {"SUCCESS"}


def test_the_operators_trace_into_one_graph():
    def loss(x, gamma, beta, mean, variance):
        y = ops.norm_act(x, gamma, beta, mean, variance, training=True, impl="fused")
        return ops.norm_act(y, gamma, beta, mean, variance, training=False, impl="fused").square().sum()

    torch._dynamo.reset()
    x = _randn((4, 3, 6, 6), torch.float32).requires_grad_()
    gamma, beta = (t.requires_grad_() for t in _numbers(3, torch.float32))
    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        running = torch.zeros(3), torch.ones(3)
        gradients = torch.autograd.grad(function(x, gamma, beta, *running), (x, gamma, beta))
        results.append((*gradients, *running))
    for plain, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, plain)


def test_per_sample_scales_are_adaptive_instance_norms():
    x = _randn((3, 4, 5, 6)).requires_grad_()
    scale, shift = _randn((3, 4), seed=1).requires_grad_(), _randn((3, 4), seed=2).requires_grad_()
    for laid in (x, x.contiguous(memory_format=torch.channels_last)):
        y = ops.affine_act(laid, scale, shift, activation="leaky_relu", impl="fused")
        plain = nn.functional.leaky_relu(x * scale[:, :, None, None] + shift[:, :, None, None], 0.2)
        torch.testing.assert_close(y, plain)
        gy = _randn(x.shape, seed=3)
        ours, twin = (torch.autograd.grad(t, (x, scale, shift), gy, retain_graph=True) for t in (y, plain))
        torch.testing.assert_close(ours, twin)


# --- small batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["reference", "fused"])
def test_a_single_value_a_channel_has_no_batch_statistics(impl):
    with pytest.raises(errors.UserError, match="more than one value a channel"):
        ops.batch_norm_act(torch.ones(1, 3, 1, 1), None, None, impl=impl)
    running = torch.zeros(3), torch.ones(3)
    y = ops.norm_act(torch.ones(1, 3, 1, 1), None, None, *running, training=False, impl=impl)
    torch.testing.assert_close(y, torch.ones(1, 3, 1, 1))


@pytest.mark.parametrize("impl", ["reference", "fused"])
def test_an_empty_batch_comes_out_empty_and_moves_nothing(impl):
    x, running = torch.empty(0, 3, 4, 4, requires_grad=True), (torch.zeros(3), torch.ones(3))
    gamma = torch.ones(3, requires_grad=True)
    y = ops.norm_act(x, gamma, None, *running, training=True, impl=impl)
    assert y.shape == x.shape
    assert torch.equal(torch.stack(running), torch.tensor([[0.0] * 3, [1.0] * 3]))
    gx, gg = torch.autograd.grad(y.sum(), (x, gamma))
    assert gx.shape == x.shape
    assert torch.equal(gg, torch.zeros(3))
    assert ops.affine_act(x, gamma, gamma, impl=impl).shape == x.shape


# --- several ranks ---------------------------------------------------------------------------------------------------


class _Ranks:
    """Two ranks in one process: each call of a rank waits for its twin by running the other rank first."""

    def __init__(self, totals):
        self.totals, self.calls = totals, []

    def __call__(self, tensor):
        assert tensor.dtype == torch.float64
        self.calls.append(len(tensor))
        return tensor + self.totals[len(tensor)]


@pytest.mark.parametrize("split", [3, 1, 0])
@pytest.mark.parametrize("impl", ["reference", "fused"])
def test_two_ranks_give_the_values_and_gradients_of_one_in_one_collective_each_way(impl, split):
    gamma, beta = _numbers(5, torch.float64)
    x = _clear_of_the_kink(_randn((7, 5, 4, 3)), gamma, beta)
    gy = _randn(x.shape, seed=3)
    y, mean, variance, gx, ggamma, gbeta = _run("reference", x, gamma, beta, "leaky_relu", gy)
    _, stats = reference_norm.normalise(x, reference_norm.totals(x), gamma, beta, 1e-5, "leaky_relu", 0.3)
    shares = []
    for part in (slice(0, split), slice(split, 7)):
        others = [other for other in (slice(0, split), slice(split, 7)) if other != part]
        totals = reference_norm.totals(x[others[0]])
        sums, _ = reference_norm.backward_sums(gy[others[0]], x[others[0]], stats, "leaky_relu", 0.3)
        ranks = _Ranks({11: totals, 10: sums})
        inputs = [t.detach().requires_grad_() for t in (x[part], gamma, beta)]
        how = {"activation": "leaky_relu", "negative_slope": 0.3, "impl": impl, "sum_over_ranks": ranks}
        our_y, our_mean, our_variance = ops.batch_norm_act(*inputs, **how)
        our_gx, *share = torch.autograd.grad(our_y, inputs, gy[part])
        shares.append(share)
        assert ranks.calls == [11, 10]
        pairs = ((our_y, y[part]), (our_mean, mean), (our_variance, variance), (our_gx, gx[part]))
        for ours, whole in pairs:
            torch.testing.assert_close(ours, whole, rtol=1e-10, atol=1e-12)
    for ours, whole in zip(map(sum, zip(*shares, strict=True)), (ggamma, gbeta), strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("impl", ["reference", "fused"])
def test_second_derivatives_through_a_shared_batch_are_exact(impl):
    gamma, beta = _numbers(2, torch.float64)
    x = _clear_of_the_kink(_randn((3, 2, 2, 2)), gamma, beta)
    inputs = [t.requires_grad_() for t in (x, gamma, beta)]

    def twice(tensor):  # two ranks that hold the same samples
        return 2 * tensor

    def function(*inputs):
        return ops.batch_norm_act(*inputs, sum_over_ranks=twice, impl=impl)[0]

    alone = ops.batch_norm_act(*inputs, impl="reference")[0]
    torch.testing.assert_close(function(*inputs), alone)
    gy = _randn(x.shape, seed=4)
    # gamma's gradients are this rank's share, so only that of x is compared: it is the same as alone.
    (ours,) = torch.autograd.grad(function(*inputs), inputs[0], gy, create_graph=True)
    (twin,) = torch.autograd.grad(alone, inputs[0], gy, create_graph=True)
    torch.testing.assert_close(ours, twin)
    weight = _randn(x.shape, seed=5)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), inputs[:2]),
        torch.autograd.grad((twin * weight).sum(), inputs[:2]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


# --- bits, dtypes, refusals ------------------------------------------------------------------------------------------


def _digest():
    digest = hashlib.sha256()
    for dtype in DTYPES:
        for shape in ((9, 24, 7, 7), (40, 3, 5, 3), (3, 70, 1, 1)):
            gamma, beta = _numbers(shape[1], dtype)
            x, gy = _randn(shape, dtype), _randn(shape, dtype, 2)
            for laid in _layouts(x):
                for activation in ACTIVATIONS:
                    for result in _run("fused", laid, gamma, beta, activation, gy):
                        digest.update(result.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def test_bits_depend_neither_on_the_run_nor_on_the_number_of_threads():
    before = torch.get_num_threads()
    try:
        seen = set()
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            seen.add(_digest())
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 1


def test_every_instruction_set_gives_the_same_bits():
    code = "from tests.ops.test_norm_act import _digest; print(_digest())"
    seen = set()
    for isa in ops.build_info()["cpu_features"]:
        environment = {**os.environ, "GANSCALE_ISA": isa}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        seen.add(done.stdout)
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_keeps_statistics_and_parameters_in_float32(dtype):
    x = _randn((4, 3, 6, 6), dtype).requires_grad_()
    gamma, beta = (t.requires_grad_() for t in _numbers(3, torch.float32))
    with torch.autocast("cpu", dtype=dtype):
        y, mean, variance = ops.batch_norm_act(x, gamma, beta, impl="fused")
    assert (y.dtype, mean.dtype, variance.dtype) == (dtype, torch.float32, torch.float32)
    gradients = torch.autograd.grad(y.float().sum(), (x, gamma, beta))
    assert [g.dtype for g in gradients] == [dtype, torch.float32, torch.float32]


def test_parameters_of_a_16_bit_network_are_widened():
    x = _randn((4, 3, 6, 6), torch.bfloat16)
    gamma, beta = (t.bfloat16().requires_grad_() for t in _numbers(3, torch.float32))
    y, _, _ = ops.batch_norm_act(x, gamma, beta, impl="fused")
    assert torch.autograd.grad(y.float().sum(), gamma)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_moments_equal_their_twin_and_nan_stays_nan(activation):
    x = _randn((4, 3, 5, 5), torch.float32)
    ours, twin = (ops.channel_moments(x, impl=i) for i in ("fused", "reference"))
    torch.testing.assert_close(ours, twin, rtol=1e-5, atol=1e-5)  # sums about a shift in float32
    x[0, 1, 0, 0] = float("nan")
    y, mean, _ = ops.batch_norm_act(x, None, None, activation=activation, impl="fused")
    assert mean.isnan().tolist() == [False, True, False]
    assert y.isnan().flatten(2).all(2).any(0).tolist() == [False, True, False]


X = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize("impl", ["reference", "fused"])
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda i: ops.batch_norm_act(X, torch.ones(4), None, impl=i), r"gamma must have shape \(3,\)"),
        (lambda i: ops.batch_norm_act(X, torch.ones(3).double(), None, impl=i), "gamma.dtype must equal x.dtype"),
        (lambda i: ops.batch_norm_act(X, [1, 1, 1], None, impl=i), "gamma must be a torch.Tensor"),
        (lambda i: ops.batch_norm_act(X, torch.ones(3, device="meta"), None, impl=i), "gamma.device must equal"),
        (lambda i: ops.batch_norm_act(X.int(), None, None, impl=i), "x.dtype must be one of"),
        (lambda i: ops.batch_norm_act(X[0, 0, 0], None, None, impl=i), "x must have an axis for the batch"),
        (lambda i: ops.batch_norm_act(X, None, None, activation="rleu", impl=i), "did you mean relu"),
        (lambda i: ops.affine_act(X, torch.ones(2, 3), torch.ones(3), impl=i), r"shift must have shape \(2, 3\)"),
        (lambda i: ops.affine_act(X, torch.ones(3), torch.ones(4), impl=i), r"shift must have shape \(3,\)"),
        (lambda i: ops.channel_moments(X.to_sparse(), impl=i), "x must be a dense tensor"),
    ],
)
def test_a_wrong_argument_is_named(call, said, impl):
    with pytest.raises(errors.UserError, match=said):
        call(impl)
