"""Samples that are explained apart owe nothing to those beside them: neither draws, nor a control that fails."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import test_explain_invariance as invariance
import torch
import toys
from test_anytime import IMAGES, QUICK, explainer, named, same

from ganscale.explain import EXPLAINERS, Subject, build_explainer, drive, find_explainer, make_request


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("smoothgrad", "attribution"),
        ("latent-counterfactual", "log_odds_random"),
        ("attack-input", "noise_margins"),
        ("attack-latent", "random_image_change"),
    ],
)
def test_what_is_drawn_for_a_sample_does_not_depend_on_those_that_share_its_chunk(method, name):
    built = named(method)
    alone, among = (toys.plainly(one).values[name][0] for one in (built.first(1), built))
    torch.testing.assert_close(alone, among, rtol=1e-5, atol=1e-6)  # float32: one row in a pass, or several


@pytest.mark.parametrize("method", ["kernel-shap", "lime", "occlusion", "input-x-gradient", "integrated-gradients"])
def test_a_control_that_fails_for_some_samples_is_lacked_by_them_alone_however_many_are_begun_together(method):
    critic = toys.FailsShuffled(14)
    subject = Subject(name="critic", fn=critic, module=critic)
    x = (
        torch.rand(6, 1, 14, 14, generator=torch.Generator().manual_seed(1))
        - torch.tensor([1, 0, 1, 0, 1, 1])[:, None, None, None]
    )
    asked = {"cells": 3} | ({"num_coalitions": 64} if method in ("kernel-shap", "lime") else {})
    dark = x.flatten(1).mean(dim=1) < 0

    def of(rows: torch.Tensor):
        return build_explainer(subject, make_request(find_explainer(method, EXPLAINERS), rows, options=asked))

    alone, bare = toys.plainly(of(x)), toys.plainly(of(x[dark]))
    score = alone.scores["deletion_auc_v_shuffled_network"]
    assert (score.n, bare.scores["deletion_auc_v_shuffled_network"].n) == (4, 4)
    assert score.control == pytest.approx(bare.scores["deletion_auc_v_shuffled_network"].control, rel=0.05)
    words = "a network with shuffled weights: no finite map for 2 of 6 samples, which have no such control"
    assert words in alone.meta["warnings"]
    assert not any("no finite map" in line for line in bare.meta["warnings"])
    same(drive(of(x), at_once=1), alone)
    none = toys.plainly(of(x[~dark]))
    assert "deletion_auc_v_shuffled_network" not in none.scores
    assert any("2 of 2 samples" in line for line in none.meta["warnings"])


def test_superpixels_of_a_sample_without_a_range_do_not_depend_on_the_others():
    x = torch.cat([IMAGES[:1], 50 * IMAGES[1:2]])
    asked = make_request(find_explainer("lime", EXPLAINERS), x, options=QUICK | {"regions": "slic", "cells": 5})
    built = build_explainer(replace(invariance.subject(), value_range=None), asked)
    assert torch.equal(built.segments_of(0), built.first(1).segments_of(0))


def test_a_mean_baseline_ties_the_samples_together():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not explainer(baseline="mean").samples_apart
