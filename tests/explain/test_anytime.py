"""Explanations that stop early are those of what was finished, to the byte, and say so."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import test_explain_invariance as invariance
import torch
import toys

from ganscale.explain import (
    EXPLAINERS,
    BudgetSpent,
    Limits,
    build_explainer,
    drive,
    explain,
    find_explainer,
    make_request,
)
from ganscale.explain.errors import ExplainOptionError

IMAGES = torch.rand(5, 1, 14, 14, generator=torch.Generator().manual_seed(1)) * 2 - 1
QUICK = {"cells": 3, "num_coalitions": 64}
WIDE = {"cells": 6, "num_coalitions": 4000, "shakes": 0, "shuffled_network": False}
HIDDEN = {"layer": "hidden"}


def named(method: str):
    """Return the explainer of the request that all tests of invariance use."""
    return build_explainer(invariance.subject(method), invariance.request_of(method))


APART = [method for method in invariance.CASES if named(method).samples_apart]


def test_all_methods_can_be_stopped_early_but_those_whose_result_is_of_all_samples_together():
    together = {"expected-gradients", "roar", "directions", "conv-interaction"}
    together |= {"autoencoder", "disentanglement", "retrieval", "membership"}
    assert {*APART} == {*invariance.CASES} - together


@pytest.mark.parametrize("method", ["attack-input", "latent-counterfactual"])
def test_where_all_samples_fix_where_a_verdict_turns_none_is_finished_before_the_others(method):
    inputs = dict(invariance.request_of(method).inputs)
    inputs |= {"generated": torch.arange(5) % 2} if method == "attack-input" else {"real": IMAGES}
    asked = make_request(find_explainer(method, EXPLAINERS), inputs, options=invariance.CASES[method])
    assert not build_explainer(invariance.subject(method), asked).samples_apart


def request(method: str = "kernel-shap", count: int = 5, **options: object):
    return make_request(find_explainer(method, EXPLAINERS), IMAGES[:count], options=QUICK | options)


def explainer(method: str = "kernel-shap", count: int = 5, **options: object):
    return build_explainer(invariance.subject(), request(method, count, **options))


def same(one, other) -> None:
    assert one.values.keys() == other.values.keys()
    for name, tensor in one.values.items():
        assert torch.equal(tensor, other.values[name]), name
    assert one.scores == other.scores


class Clock:
    """Tells the time that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def ticking(built, clock: Clock, seconds: float = 1.0):
    """Return an ``execute`` in which each chunk takes ``seconds`` of the clock."""

    def execute(chunks):
        for chunk in chunks:
            partial = built.run(chunk)
            clock.now += seconds
            yield chunk.index, partial

    return execute


def interrupted_after(built, count: int):
    """Return an ``execute`` that is interrupted, once, when ``count`` chunks are done."""
    left = [count]

    def execute(chunks):
        for chunk in chunks:
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
            yield chunk.index, built.run(chunk)

    return execute


@pytest.mark.parametrize(
    ("method", "at_once"), [("kernel-shap", 2), ("directions", 1), *((method, 1) for method in APART)]
)
def test_without_a_limit_a_few_samples_at_a_time_give_the_bytes_of_all_at_once(method, at_once):
    alone = toys.plainly(named(method))
    found = drive(named(method), at_once=at_once)
    same(found, alone)
    assert "stopped" not in found.meta
    assert found.meta["plan"] == alone.meta["plan"]


@pytest.mark.parametrize("method", APART)
def test_stopped_early_it_is_the_explanation_of_the_first_samples_alone(method):
    built = named(method)
    found = drive(built, limits=Limits(rows=1))  # at least one sample, or one chunk of them, is finished
    done, total = found.meta["stopped"][built.pieces]
    assert 1 <= done < total
    alone = toys.plainly(built.first(done))
    same(found, alone)
    assert found.meta["interim"] == f"interim result: {done} of {total} {built.pieces}, the rows were spent"


@pytest.mark.parametrize("rows", [1, 600, 1500, 3000])
def test_a_budget_of_rows_is_kept_and_used(rows):
    found = drive(explainer(), limits=Limits(rows=rows))
    each = toys.plainly(explainer(count=1)).meta["cost"]["rows_forward"]
    done = len(found.inputs["x"])
    assert done == min(5, max(1, rows // each))
    assert found.meta["cost"]["rows_forward"] == done * each


def test_a_budget_of_seconds_begins_no_sample_that_it_cannot_finish():
    clock, built = Clock(), explainer()
    chunks = len(built.plan()) // 5 + 1  # a sample's, and the one that scores it
    limits = Limits(seconds=2.5 * chunks)
    found = drive(built, execute=ticking(built, clock), limits=limits, clock=clock)
    assert found.meta["stopped"] == {"reason": "seconds", "samples": [2, 5]}
    assert clock.now <= limits.seconds
    same(found, toys.plainly(explainer(count=2)))


def test_seconds_that_run_out_in_the_midst_of_a_sample_keep_the_samples_before():
    clock, built = Clock(), explainer()

    def execute(chunks):
        for chunk in chunks:
            clock.now += 100.0 if chunk.explanation == 1 else 1.0  # the second sample takes far longer than the first
            yield chunk.index, built.run(chunk)

    found = drive(built, execute=execute, limits=Limits(seconds=250.0), clock=clock)
    assert found.meta["stopped"] == {"reason": "seconds", "samples": [1, 5]}
    assert clock.now < 400


def test_an_interrupt_keeps_what_is_finished_and_says_so():
    built = explainer()
    chunks = len(built.plan()) // 5 + 1
    found = drive(built, execute=interrupted_after(built, 3 * chunks + 1))
    assert found.meta["stopped"] == {"reason": "interrupted", "samples": [3, 5]}
    same(found, toys.plainly(explainer(count=3)))


def test_an_interrupt_of_explain_keeps_what_is_finished_too():
    calls, last = [], [float("inf")]

    def fn(x):
        calls.append(len(x))
        if len(calls) == last[0]:
            raise KeyboardInterrupt
        return torch.from_numpy(x.numpy()[:, 0, 2:9, 3:5].mean(axis=(1, 2)))  # which no pass can be prepared for

    explain(fn, IMAGES, "kernel-shap", **QUICK)
    last[0] = len(calls) + 2 * len(calls) // 3
    found = explain(fn, IMAGES, "kernel-shap", **QUICK)
    done, total = found.meta["stopped"]["samples"]
    assert (found.meta["stopped"]["reason"], 1 <= done < total == 5) == ("interrupted", True)
    same(found, explain(fn, IMAGES[:done], "kernel-shap", **QUICK))


def test_an_interrupt_before_anything_is_finished_is_one():
    built = explainer()
    with pytest.raises(KeyboardInterrupt):
        drive(built, execute=interrupted_after(built, 1))


def test_a_method_without_interim_results_is_left_when_its_time_is_up():
    built, clock = named("directions"), Clock()
    with pytest.raises(BudgetSpent, match=r"before directions had a result.*no interim one"):
        drive(built, execute=ticking(built, clock), limits=Limits(seconds=3.0), clock=clock)
    assert clock.now <= 5


def test_what_is_told_meanwhile_counts_what_is_finished():
    heard = []
    for method in ("directions", "kernel-shap", "class-generation"):
        drive(named(method), on_progress=lambda *told: heard.append(told))
    count = len(named("directions").plan())
    assert heard[:count] == [(done + 1, count, "chunks") for done in range(count)]
    rest = [told for told in heard if told[2] != "chunks"]
    assert rest == [(done + 1, 5, "samples") for done in range(5)] + [(done + 1, 3, "classes") for done in range(3)]


def test_drawing_stops_at_the_width_that_was_asked_for_with_fewer_rows():
    whole = toys.plainly(explainer(count=2, **WIDE))
    found = drive(explainer(count=2, **WIDE), limits=Limits(width=0.15))
    sweeps, most = found.meta["stopped"]["sweeps"]
    assert found.meta["stopped"]["reason"] == "width"
    assert sweeps < most
    assert max(found.meta["widths"]) <= 0.15
    rows, widest = zip(*found.meta["widest_by_rows"], strict=True)
    assert len(rows) == sweeps
    assert all(before < after for before, after in pairwise(rows))
    assert widest[-1] == max(found.meta["widths"])
    assert min(widest[:-1]) > 0.15, "it stops at the first that is narrow enough"
    assert "interim" not in found.meta  # it is all that was asked for
    assert found.meta["cost"]["rows_forward"] < 0.8 * whole.meta["cost"]["rows_forward"]
    error, largest = found.values["segment_errors"], found.values["segment_weights"].abs().amax(1, keepdim=True)
    assert float((2 * 1.96 * error / largest).max()) <= 0.15
    away = (found.values["segment_weights"] - whole.values["segment_weights"]).abs()
    assert float((away <= 3 * error + 1e-9).double().mean()) > 0.9  # within three standard errors of many more rows
    total = found.values["segment_weights"].sum(1)
    torch.testing.assert_close(total, found.values["fx"] - found.values["f_baseline"], atol=1e-9, rtol=1e-9)


def test_each_sample_is_drawn_until_it_is_narrow_enough_itself():
    found = drive(explainer(count=4, **WIDE), limits=Limits(width=0.15))
    rows = found.meta["coalitions"]
    assert len(set(rows)) > 1  # some samples are harder than others
    narrow = drive(explainer(count=1, **WIDE), limits=Limits(width=0.15))
    assert narrow.meta["coalitions"] == rows[0]
    assert torch.equal(narrow.values["segment_weights"][0], found.values["segment_weights"][0])


def test_nothing_is_computed_for_a_sample_that_is_narrow_enough_and_each_sweep_is_told():
    built, ran, heard = explainer(count=4, **WIDE), [], []

    def execute(chunks):
        for chunk in chunks:
            ran.append(chunk)
            yield chunk.index, built.run(chunk)

    limits = Limits(width=0.15)
    found = drive(built, execute=execute, limits=limits, on_progress=lambda *told: heard.append(told))
    assert len(ran) == found.meta["plan"]["chunks"]
    sweeps, most = found.meta["stopped"]["sweeps"]
    assert heard == [(sweep + 1, most, "sweeps") for sweep in range(sweeps)]


def test_one_fit_a_sample_is_kept_however_many_sweeps_there_were_and_made_anew_only_where_parts_came():
    built, fitted = explainer(count=3, **WIDE), []
    fit = built._fit
    built._fit = lambda row, parts: fitted.append((row, len(parts))) or fit(row, parts)
    found = drive(built, limits=Limits(width=0.15))
    assert found.meta["stopped"]["sweeps"][0] > 2
    assert len(built._fits) == 3
    assert len({*fitted}) == len(fitted) > 3


def test_rows_and_seconds_end_the_drawing_before_the_width_with_something_left_for_the_scores():
    clock, built = Clock(), explainer(count=2, **WIDE)
    rows = toys.plainly(built).meta["cost"]["rows_forward"] // 2
    few = drive(built, limits=Limits(width=1e-9, rows=rows))
    assert few.meta["stopped"]["reason"] == "rows"
    done, most = few.meta["stopped"]["sweeps"]
    assert few.meta["interim"] == f"interim result: {done} of {most} sweeps, the rows were spent"
    assert 0.5 * rows < few.meta["cost"]["rows_forward"] <= rows
    limits = Limits(width=1e-9, seconds=len(built.plan()) / 2)
    late = drive(built, execute=ticking(built, clock), limits=limits, clock=clock)
    assert late.meta["stopped"]["reason"] == "seconds"
    assert clock.now <= limits.seconds


def test_an_interrupt_amid_sweeps_keeps_those_that_are_whole_and_scores_them():
    built = explainer(count=2, **WIDE)
    sweeps = [built.sweep_of(chunk) for chunk in built.plan()]
    before, third = sum(sweep < 3 for sweep in sweeps), sweeps.count(3)
    limits = Limits(width=1e-9)
    found = drive(built, execute=interrupted_after(built, before + third // 2), limits=limits)
    assert found.meta["stopped"] == {"reason": "interrupted", "sweeps": [3, max(sweeps) + 1]}
    total = found.values["segment_weights"].sum(1)
    torch.testing.assert_close(total, found.values["fx"] - found.values["f_baseline"], atol=1e-9, rtol=1e-9)
    assert found.scores["deletion_auc"].n == 2
    with pytest.raises(KeyboardInterrupt):
        drive(built, execute=interrupted_after(built, 1), limits=limits)


def test_a_width_out_of_reach_takes_all_rows_and_is_the_whole():
    asked = {"cells": 4, "num_coalitions": 700, "shakes": 0, "shuffled_network": False}
    found = drive(explainer(count=2, **asked), limits=Limits(width=1e-9))
    same(found, toys.plainly(explainer(count=2, **asked)))
    assert min(found.meta["widths"]) > 1e-9


def test_where_every_coalition_is_tried_the_width_is_zero():
    found = drive(explainer(count=1, cells=2), limits=Limits(width=0.1))
    assert found.meta["widths"] == [0]
    assert "stopped" not in found.meta


@pytest.mark.parametrize(
    ("method", "fewer"),
    [
        ("class-generation", {"classes": 2}),
        ("probe-classifier", {"draws": 64}),
        ("feature-maps", {"layers": "hidden"}),
        ("feature-vis", {"units": 2}),
    ],
)
def test_what_is_no_sample_is_cut_as_the_option_of_fewer_would(method, fewer):
    built, asked = named(method), invariance.request_of(method)
    count = {"feature-maps": 1}.get(method, next(iter(fewer.values())))
    same(toys.plainly(built.first(count)), toys.plainly(built.with_options(**fewer)))
    assert build_explainer(built.subject, replace(asked, options=asked.options | fewer)).total == count


def test_channels_are_moved_by_what_is_usual_for_them_and_not_by_the_latents_that_are_explained():
    asked = make_request(find_explainer("attfind", EXPLAINERS), invariance.request_of("attfind").inputs, options=HIDDEN)
    built = build_explainer(invariance.subject(), asked)
    found = drive(built, limits=Limits(rows=1))
    assert found.meta["stopped"]["samples"] == [4, 5]
    same(found, toys.plainly(built.first(4)))


def test_more_classes_than_there_are_are_refused():
    with pytest.raises(ExplainOptionError, match="at most the 3 of three classes, got 4"):
        named("class-generation").with_options(classes=4).plan()


def test_later_rounds_of_all_that_is_there_are_made_anew_within_the_budget_and_no_oftener_than_twice():
    generator = toys.ConvGenerator(6, 14)
    with torch.no_grad():  # so that what is brighter than the background is a part of the picture
        generator.up.bias.fill_(-0.5)
        generator.up.weight.mul_(3)
    z = torch.randn(80, 6, generator=torch.Generator().manual_seed(7))
    asked = make_request(find_explainer("dissect", EXPLAINERS), z, options={"ablate": 1})
    built = build_explainer(replace(invariance.subject(), generator=generator), asked)
    whole = toys.plainly(built)
    assert 0.01 < float(whole.values["removed"][0]) < 0.99
    found = drive(built, limits=Limits(rows=10**9))
    same(found, whole)
    rows = whole.meta["cost"]["rows_forward"]
    heard = []
    cut = drive(built, limits=Limits(rows=rows), on_progress=lambda done, total, _: heard.append(done))
    done, _ = cut.meta["stopped"]["samples"]
    assert heard == [16, 32][: len(heard)]
    assert done == heard[-1]
    assert cut.meta["cost"]["rows_forward"] <= rows
    same(cut, toys.plainly(built.first(done)))


def test_rows_of_a_method_without_interim_results_are_refused_with_the_reason():
    words = "--rows must be asked of a method with interim results, got directions: .* of all samples together"
    with pytest.raises(ExplainOptionError, match=words):
        drive(named("directions"), limits=Limits(rows=10))


def test_a_width_of_a_method_that_draws_nothing_is_refused():
    with pytest.raises(ExplainOptionError, match="of a method that draws, got integrated-gradients"):
        explain(toys.conv_critic(), IMAGES, "integrated-gradients", limits=Limits(width=0.1))


@pytest.mark.parametrize("limit", [{"seconds": 0}, {"rows": -1}, {"width": float("nan")}])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(ExplainOptionError, match="be above 0"):
        Limits(**limit)
