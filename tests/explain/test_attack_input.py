"""Attacks on inputs: a linear critic's known answers, the ball and the range, the named errors, and two peers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from torch import nn

from ganscale.explain import Subject, explain
from ganscale.explain.errors import CallableError, ExplainInputError, ExplainOptionError, ZeroGradientError


def pictures(count: int, *, low: float = -1.0, high: float = 1.0, side: int = 14, seed: int = 1) -> torch.Tensor:
    drawn = torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed))
    return low + (high - low) * drawn


def classifier(*, seed: int = 0) -> nn.Sequential:
    """Ten classes of [n, 1, 14, 14]; the last layer is scaled so that attacks of 8/255 turn some verdicts."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 32), nn.ReLU()
        )
        return net.append(nn.Linear(32, 10)).eval()


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_one_step_lowers_a_linear_logit_by_budget_times_the_dual_norm(norm: str, dual: int):
    weight = torch.randn(1, 14, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = 0.1 * pictures(5).double()  # far from the ends of the range: nothing is cut off
    budgets = {"linf": (1, 4, 16), "l2": (32, 128, 256)}[norm]
    found = explain(toys.Linear(weight), x, "attack-input", norm=norm, goal="lower", budgets=budgets)
    drop_NAE = found.values["clean_margins"][:, None, None] - found.values["margins"]
    truth_E = found.values["budgets"] * (2 / 255) * weight.norm(p=dual)
    for attack in (1, 2):  # FGSM, and PGD, which on a linear function arrives at the same place
        torch.testing.assert_close(drop_NAE[:, attack], truth_E.expand(5, -1), rtol=1e-6, atol=0)
    assert (drop_NAE[:, 0].abs() < truth_E).all()
    assert not found.meta["gradient_masking"]
    assert not found.not_better_than_random


def test_a_budget_means_the_same_share_of_the_picture_in_any_range():
    net = classifier()
    x = pictures(6, low=0.0)
    unit = explain(net, x, "attack-input", value_range=(0.0, 1.0), budgets=(8.0,))
    signed = explain(lambda rows: net((rows + 1) / 2), 2 * x - 1, "attack-input", budgets=(8.0,))
    torch.testing.assert_close(unit.values["margins"], signed.values["margins"], rtol=1e-3, atol=1e-4)  # float32
    moved = (unit.values["adversarial"] - x).abs().amax()
    assert float(moved) == pytest.approx(8 / 255, rel=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("start", [False, True])
def test_no_attack_leaves_its_ball_or_the_range(norm: str, start: bool):
    x = pictures(6)
    found = explain(toys.conv_critic(), x, "attack-input", norm=norm, random_start=start)
    radius_E = found.values["budgets"] * 2 / 255
    assert (found.values["norms"] <= radius_E * (1 + 1e-5)).all()  # float32 rounds x + delta
    assert found.values["norms"][:, 1, 0].min() > 0.5 * radius_E[0]
    adversarial = found.values["adversarial"]
    assert float(adversarial.min()) >= -1
    assert float(adversarial.max()) <= 1
    shown = found.values["shown_budget"] * 2 / 255
    flat = (adversarial - x).double().flatten(1)
    length = flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)
    assert (length <= shown * (1 + 1e-5)).all()


def test_fewer_verdicts_hold_at_larger_budgets_and_pgd_is_at_least_as_strong_as_fgsm_as_noise():
    found = explain(classifier(), pictures(32), "attack-input", budgets=(1, 4, 8, 16, 32))
    held_AE = found.values["verdict_held"].mean(0)
    assert (held_AE[1:].diff(dim=1) <= 0).all()
    assert (held_AE[2] <= held_AE[1]).all()
    assert (held_AE[1] <= held_AE[0]).all()
    assert held_AE[2, 0] > 0.9 > 0.1 > held_AE[2, -1]  # from nearly all to nearly none: the law above says something
    assert not found.meta["gradient_masking"]
    assert found.scores["pgd_success"].beats_control


def test_a_gradient_that_ripples_is_flagged_as_masked():
    weight = torch.randn(1, 14, 14, generator=torch.Generator().manual_seed(0))

    def rippled(x: torch.Tensor) -> torch.Tensor:
        return (x * weight).flatten(1).sum(1) + 3e-3 * torch.sin(3e4 * x).flatten(1).sum(1)

    found = explain(rippled, 0.5 * pictures(8), "attack-input", goal="lower")
    assert found.meta["gradient_masking"]
    assert "gradient masking" in found.meta["warnings"][0]


def test_an_attack_that_turns_no_verdict_does_not_claim_success():
    far = toys.Linear(torch.full((1, 14, 14), 1e-3), bias=10.0)
    success = explain(far, pictures(4), "attack-input").scores["pgd_success"]
    assert (success.value, success.control, success.beats_control) == (0, 0, False)


def test_a_critics_threshold_lies_half_way_between_real_and_generated():
    x = torch.cat([torch.full((3, 1, 14, 14), 0.5), torch.full((3, 1, 14, 14), -0.1)])
    inputs = {"x": x, "generated": torch.tensor([0, 0, 0, 1, 1, 1]).bool()}
    critic = toys.Linear(torch.full((1, 14, 14), 1 / 196))
    found = explain(critic, inputs, "attack-input")
    assert found.meta["threshold"] == pytest.approx(0.2)
    assert found.scores["clean_accuracy"].value == 1
    assert found.scores["clean_accuracy"].control == 0.5
    np.testing.assert_allclose(found.values["clean_margins"], 0.3, rtol=1e-5)
    assert explain(critic, x, "attack-input").meta["threshold"] == 0
    assert explain(critic, inputs, "attack-input", threshold=0.45).values["clean_margins"][0] == pytest.approx(0.05)


def test_labels_decide_what_a_classifier_is_attacked_from():
    net, x = classifier(), pictures(6)
    predicted = net(x).argmax(1)
    wrong = (predicted + 1) % 10
    labels = torch.where(torch.arange(6) < 3, predicted, wrong)
    found = explain(net, {"x": x, "labels": labels}, "attack-input")
    assert (found.values["clean_margins"] < 0).tolist() == [False] * 3 + [True] * 3
    assert found.scores["clean_accuracy"].value == 0.5
    assert found.scores["pgd_success"].n == 3  # those that were right before
    unknown = explain(net, {"x": x, "labels": torch.full((6,), -1)}, "attack-input")
    assert (unknown.values["clean_margins"] >= 0).all()
    assert "clean_accuracy" not in unknown.scores
    with pytest.raises(ExplainInputError, match="below 10"):
        explain(net, {"x": x, "labels": torch.full((6,), 10)}, "attack-input")


def test_what_cannot_be_attacked_is_refused_by_name():
    net, x = classifier(), pictures(3)
    with pytest.raises(ExplainInputError, match=r"lie in the declared range \[0, 1\]"):
        explain(net, x, "attack-input", value_range=(0.0, 1.0))
    with pytest.raises(CallableError, match="cross-entropy over one class has no gradient"):
        explain(lambda rows: net(rows)[:, :1], x, "attack-input")
    with pytest.raises(ZeroGradientError, match="saturated sigmoid"):
        explain(lambda rows: torch.sigmoid(1e4 + rows.flatten(1).sum(1)), x, "attack-input")
    with pytest.raises(ZeroGradientError, match="loss=margin"):
        explain(lambda rows: 1e5 * net(rows), x, "attack-input")
    assert explain(lambda rows: 1e5 * net(rows), x, "attack-input", loss="margin").scores["pgd_margin_drop"].value > 0
    with pytest.raises(ExplainOptionError, match="flip for a classifier"):
        explain(net, x, "attack-input", goal="raise")
    with pytest.raises(ExplainOptionError, match="greater than 0"):
        explain(net, x, "attack-input", budgets="4,-1")


@pytest.mark.parametrize("budget", [8, 16, 32])
def test_a_classifier_is_attacked_as_torchattacks_and_art_do(budget: int):
    torchattacks, evasion = toys.peer("torchattacks"), toys.peer("art.attacks.evasion")
    estimators = toys.peer("art.estimators.classification")
    net, x = classifier(), pictures(64, low=0.0)
    label_N, eps = net(x).argmax(1), budget / 255
    ours = {
        name: explain(net, {"x": x, "labels": label_N}, "attack-input", value_range=(0.0, 1.0), **options)
        for name, options in {
            "pgd": {"budgets": (budget,)},
            "fgsm": {"budgets": (budget,), "steps": 1, "step": 1.0},  # one step of one radius is FGSM
        }.items()
    }
    torch.testing.assert_close(ours["pgd"].values["margins"][:, 1], ours["fgsm"].values["margins"][:, 2])
    theirs = {
        "pgd": torchattacks.PGD(net, eps=eps, alpha=eps / 4, steps=10, random_start=False),
        "fgsm": torchattacks.FGSM(net, eps=eps),
    }
    wrapped = estimators.PyTorchClassifier(
        net, loss=nn.CrossEntropyLoss(), input_shape=(1, 14, 14), nb_classes=10, clip_values=(0.0, 1.0)
    )
    size = {"norm": np.inf, "eps": eps}
    art = {
        "pgd": evasion.ProjectedGradientDescent(wrapped, eps_step=eps / 4, max_iter=10, verbose=False, **size),
        "fgsm": evasion.FastGradientMethod(wrapped, **size),
    }
    for name, found in ours.items():
        adversarial = found.values["adversarial"]
        differ = adversarial != theirs[name](x, label_N)  # a slope of nothing may change its sign with the batch's size
        assert float(differ.float().mean()) <= 1e-3
        peer = torch.from_numpy(art[name].generate(x.numpy(), y=np.eye(10, dtype=np.float32)[label_N]))
        differ = (adversarial - peer).abs() > 1e-6  # one rounding
        assert float(differ.float().mean()) <= 1e-3
        robust = float(found.values["verdict_held"][:, 2].mean())
        assert abs(robust - float((net(peer).argmax(1) == label_N).float().mean())) <= 1 / 64


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")  # captum's own
@pytest.mark.parametrize("budget", [8, 16, 32])
def test_a_classifier_is_attacked_as_captum_does_where_it_is_given_the_cross_entropy(budget: int):
    robust = toys.peer("captum.robust")
    net, x = classifier(), pictures(64, low=0.0)
    label_N, eps = net(x).argmax(1), budget / 255
    found = explain(net, {"x": x, "labels": label_N}, "attack-input", value_range=(0.0, 1.0), budgets=(budget,))

    def loss(logits_NK: torch.Tensor, wanted_N: torch.Tensor) -> torch.Tensor:
        # a pixel whose slope is below 1e-6 it leaves where it is; a thousandfold loss has the same signs
        return 1e3 * nn.functional.cross_entropy(logits_NK, wanted_N, reduction="none")

    attack = robust.PGD(net, loss_func=loss, lower_bound=0.0, upper_bound=1.0)
    peer = attack.perturb(x, radius=eps, step_size=eps / 4, step_num=10, target=label_N)
    differ = (found.values["adversarial"] - peer).abs() > 1e-6  # one rounding
    assert float(differ.float().mean()) <= 0.005
    held = float(found.values["verdict_held"][:, 2].mean())
    assert held == float((net(peer).argmax(1) == label_N).float().mean())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_critics_one_logit_is_attacked_as_torchattacks_does_two(norm: str):
    torchattacks = toys.peer("torchattacks")
    critic, x, eps = toys.conv_critic().eval(), pictures(16, low=0.0), {"linf": 8 / 255, "l2": 128 / 255}[norm]
    found = explain(critic, x, "attack-input", value_range=(0.0, 1.0), norm=norm, budgets=(255 * eps,))

    class Two(nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            logit = critic(rows)
            return torch.stack([torch.zeros_like(logit), logit], dim=1)

    attack = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    peer = attack(Two().eval(), eps=eps, alpha=eps / 4, steps=10, random_start=False)(x, (critic(x) >= 0).long())
    assert float((found.values["adversarial"] - peer).abs().max()) <= 1e-6


def test_vectors_without_a_range_have_budgets_in_their_own_units():
    weight = torch.tensor([1.0, -2.0, 0.5])
    found = explain(toys.Linear(weight), torch.randn(3, 3), "attack-input", budgets=(0.5,), goal="lower")
    drop = found.values["clean_margins"][:, None] - found.values["margins"][:, 2]
    torch.testing.assert_close(drop, torch.full((3, 1), 0.5 * 3.5, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert found.meta["budgets_in"] == "plain units"


def test_the_gradient_is_that_of_the_network_in_eval_mode():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(196, 1), nn.Flatten(0)).train()
    subject = Subject(name="dropout", fn=net, module=net)
    found = explain(subject, 0.5 * pictures(3), "attack-input", goal="lower", budgets=(4.0,))
    drop = (found.values["clean_margins"][:, None] - found.values["margins"][:, 1])[:, 0]
    truth = float(net[2].weight.detach().abs().sum()) * 4 * 2 / 255
    torch.testing.assert_close(drop, torch.full((3,), truth, dtype=torch.float64), rtol=1e-4, atol=0)
    assert net.training
