"""What ``explain`` asks of a callable, of inputs and of options, and how it leaves the networks behind."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch
import toys
from torch import nn

from ganscale.explain import EXPLAINERS, Subject, Target, explain, subject_of_run
from ganscale.explain.errors import CallableError, ExplainInputError, ExplainOptionError, ExplainTargetError
from ganscale.explain.layers import find_layer


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 1, 14, 14, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_every_method_has_a_summary_and_is_named_as_it_is_registered():
    for name, explainer in EXPLAINERS.items():
        assert explainer.name == name
        assert 10 < len(explainer.summary) < 120


def test_an_unknown_method_or_option_offers_the_nearest(images):
    with pytest.raises(ExplainOptionError, match="kernel-shap"):
        explain(toys.conv_critic(), images, "kernel-shape")
    with pytest.raises(ExplainOptionError, match="did you mean num_coalitions"):
        explain(toys.conv_critic(), images, "kernel-shap", num_coalition=10)
    with pytest.raises(ExplainOptionError, match="cells"):
        explain(toys.conv_critic(), images, "kernel-shap", cells="many")


def test_options_may_come_as_text_and_are_all_recorded(images):
    found = explain(toys.conv_critic(), images, "kernel-shap", cells="2", baseline="-0.5", paired="false")
    options = found.meta["options"]
    assert (options["cells"], options["baseline"], options["paired"]) == (2, -0.5, False)
    assert options["num_coalitions"] == 1024
    assert float(found.inputs["baseline"].unique()) == -0.5


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda x: x.flatten(1).sum(1, keepdim=True), "one number a row"),
        (lambda x: x.sum(), "one number a row"),
        (lambda x: [0.0], "one number a row"),
        (lambda x: x.flatten(1).sum(1) / 0, "finite"),
        (lambda x: x @ torch.ones(3, 3), "accept inputs of shape"),
        (lambda x: {}["no such key"], "accept inputs of shape .*got KeyError: 'no such key'"),
        (toys.MinibatchSpread(), "rows independently"),
    ],
)
def test_a_callable_that_breaks_the_contract_is_refused(images, fn, words):
    with pytest.raises(CallableError, match=words):
        explain(fn, images, "kernel-shap")


def test_a_function_that_turns_infinite_on_a_perturbed_row_is_refused(images):
    def breaks_on_a_mixture(x: torch.Tensor) -> torch.Tensor:
        return 1 / ((x[:, 0, 0, 0] == 0) == (x[:, 0, -1, -1] == 0)).float()

    with pytest.raises(CallableError, match="perturbed row"):
        explain(breaks_on_a_mixture, images, "kernel-shap", baseline=0)


def test_two_equal_samples_do_not_hide_a_look_across_the_batch(images):
    with pytest.raises(CallableError, match="rows independently"):
        explain(toys.MinibatchSpread(), images[:1].expand(2, 1, 14, 14), "kernel-shap")


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(0, 1, 4, 4), "at least one sample"),
        (torch.zeros(4), "at least one sample"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "float32 or float64"),
        (torch.full((2, 1, 4, 4), float("nan")), "finite"),
        (torch.full((2, 1, 4, 4), 1.01), "declared range"),
        ([[0.0]], "be a tensor"),
    ],
)
def test_inputs_that_cannot_be_explained_are_refused(x, words):
    with pytest.raises(ExplainInputError, match=words):
        explain(lambda rows: rows.flatten(1).sum(1), {"x": x}, "kernel-shap")


def test_inputs_that_fit_zero_to_one_are_warned_about_and_recorded():
    x = torch.rand(2, 1, 14, 14, generator=torch.Generator().manual_seed(1))
    with pytest.warns(UserWarning, match=r"while \[-1, 1\] is declared"):
        found = explain(toys.conv_critic(), x, "kernel-shap")
    assert any("rescaled" in words for words in found.meta["warnings"])
    quiet = explain(toys.conv_critic(), x, "kernel-shap", value_range=(0.0, 1.0))
    assert quiet.meta["warnings"] == []
    assert float(quiet.inputs["baseline"].max()) == 0.0  # black of the declared range


@pytest.mark.parametrize("value_range", [(1.0, -1.0), "images", (0.0,), (float("nan"), 1.0)])
def test_a_value_range_that_is_none_is_refused(images, value_range):
    with pytest.raises(ExplainOptionError, match="value_range"):
        explain(toys.conv_critic(), images, "kernel-shap", value_range=value_range)


def test_a_baseline_outside_the_range_is_refused(images):
    with pytest.raises(ExplainInputError, match="declared range"):
        explain(toys.conv_critic(), images, "kernel-shap", baseline=-3)


def test_windows_that_leave_pixels_between_them_are_refused(images):
    with pytest.raises(ExplainOptionError, match="stride must be at most the window's side, 2"):
        explain(toys.conv_critic(), images, "occlusion", window=2, stride=3)


def test_a_single_sample_is_not_compared_with_its_own_mean(images):
    with pytest.raises(ExplainOptionError, match="baseline must not be mean for a single sample"):
        explain(toys.conv_critic(), images[:1], "kernel-shap", baseline="mean")


@pytest.mark.parametrize("baseline", ["auto", "low", "mid", "mean", "blur", "zero"])
def test_every_baseline_lies_in_the_range_and_is_kept_with_the_result(images, baseline):
    found = explain(toys.conv_critic(), images, "kernel-shap", baseline=baseline, cells=2)
    kept = found.inputs["baseline"]
    assert kept.shape == images.shape
    assert kept.abs().max() <= 1
    expected = {"auto": -1.0, "low": -1.0, "mid": 0.0, "zero": 0.0}
    if baseline in expected:
        assert float(kept.unique()) == expected[baseline]
    else:
        assert kept.std() < images.std()


class Fragile(nn.Module):
    """Has every kind of state that an explanation must not leave changed."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self.net = toys.conv_critic()
        self.norm = nn.BatchNorm2d(1)
        self.drop = nn.Dropout(0.5)
        self.calls, self.fails = 0, fails
        self.net[0].weight.requires_grad_(False)
        self.norm.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        torch.rand(3)  # draws from the global stream
        if self.fails and self.calls > 6:
            raise ArithmeticError("broke off")
        return self.net(self.drop(self.norm(x)))


@pytest.mark.parametrize("method", ["integrated-gradients", "kernel-shap"])
@pytest.mark.parametrize("fails", [False, True])
def test_networks_come_back_as_they_were_also_after_an_exception(images, method, fails):
    network = Fragile(fails=fails)
    modes = {name: part.training for name, part in network.named_modules()}
    gradients = {name: p.requires_grad for name, p in network.named_parameters()}
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(11)
    stream = torch.get_rng_state()
    if fails:
        with pytest.raises(ArithmeticError):
            explain(network, images, method)
    else:
        explain(network, images, method)
    assert {name: part.training for name, part in network.named_modules()} == modes
    assert {name: p.requires_grad for name, p in network.named_parameters()} == gradients
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), stream)


def test_the_fake_target_is_the_negated_logit(images):
    critic = toys.conv_critic()
    real, fake = (
        explain(subject_of_run(target=f"critic:{sign}", critic=critic), images, "kernel-shap")
        for sign in ("real", "fake")
    )
    torch.testing.assert_close(real.values["segment_weights"], -fake.values["segment_weights"], atol=1e-6, rtol=1e-6)
    assert (str(real.target), str(fake.target)) == ("critic:real", "critic:fake")


def test_an_unknown_target_is_refused_with_the_known_ones():
    with pytest.raises(ExplainTargetError, match=r"critic.*class:K"):
        Target.parse("critik")
    with pytest.raises(ExplainTargetError, match="for a run"):
        subject_of_run(target="function", critic=toys.conv_critic())


def test_what_comes_with_the_samples_is_kept(images):
    generated = torch.tensor([0, 1, 1])
    found = explain(toys.conv_critic(), {"x": images, "generated": generated}, "kernel-shap", cells=2)
    assert torch.equal(found.inputs["generated"], generated)
    assert torch.equal(found.inputs["x"], images)
    with pytest.raises(ExplainInputError, match="3 rows"):
        explain(toys.conv_critic(), {"x": images, "generated": generated[:2]}, "kernel-shap")


def test_the_record_names_seeds_versions_weights_and_cost(images):
    critic = toys.conv_critic()
    meta = explain(critic, images, "integrated-gradients", seed=9, shakes=0, shuffled_network=False).meta
    assert meta["seed"] == 9
    assert meta["versions"]["torch"] == torch.__version__
    assert meta["peers"]["captum"].startswith("0.9")
    assert meta["cost"]["rows_backward"] == 3 * sum(50 * 2**k for k in range((meta["steps"][0] // 50).bit_length()))
    with torch.no_grad():
        critic[0].weight[0, 0, 0, 0] += 1
    assert explain(critic, images, "kernel-shap").meta["weights_sha256"] != meta["weights_sha256"]


def test_micro_batches_do_not_change_the_result(images):
    critic = toys.conv_critic()
    one, other = (explain(critic, images, "kernel-shap", micro_batch=rows) for rows in (64, 17))
    scale = max(float(one.values["segment_weights"].abs().max()), float(critic(images).abs().max()))
    worst = float((one.values["segment_weights"] - other.values["segment_weights"]).abs().max())
    assert worst <= 1e-6 * scale  # float32 forwards of other shapes


def test_a_layer_behind_a_wrapper_is_found_by_its_plain_name():
    wrapped = nn.Module()
    wrapped.module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert find_layer(wrapped, "0") is wrapped.module[0]


def test_errors_survive_pickling():
    error = CallableError("the callable", "return one number a row", (3, 1), "reduce it")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is CallableError
    assert str(again) == str(error)
    assert again.exit_code == 2


def test_a_bound_method_of_a_network_is_held_in_eval_mode(images):
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Dropout(0.5), toys.conv_critic())

        def score(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    pair = Pair()
    assert explain(pair.score, images, "kernel-shap", cells=2).scores  # dropout would break the contract
    assert pair.net[0].training


def test_listing_the_methods_loads_no_captum():
    code = "import sys, ganscale.explain; sys.exit('captum' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_subject_without_networks_lives_on_the_cpu():
    assert Subject(name="f", fn=lambda x: x.sum(1)).device == torch.device("cpu")
