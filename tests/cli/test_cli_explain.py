"""``ganscale explain`` and ``ganscale classifier``: what they refuse and how, and what is left when stopped."""

from __future__ import annotations

import json
import re
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import call, files_below
from explaining import EXPLAIN, GRADIENTS, SHAP, of
from PIL import Image

from ganscale.explain import Explanation, attribution
from ganscale.explain.base import Explainer
from ganscale.explain.errors import CallableError
from ganscale.runtime import load

pytestmark = pytest.mark.usefixtures("user_module")

REFUSED = {
    "a method misspelt": ([*EXPLAIN, "--method", "lyme"], ["did you mean lime"]),
    "a class that is not there": (
        [*SHAP, "--classifier", "my_rules:halves", "--target", "class:uper"],
        ["did you mean upper", "0 upper, 1 lower"],
    ),
    "a class number too high": (
        [*SHAP, "--classifier", "my_rules:halves", "--target", "class:2"],
        ["0 upper, 1 lower"],
    ),
    "a form of target": ([*SHAP, "--target", "clas:2"], ["did you mean class", "unit:LAYER"]),
    "a layer that is not there": ([*SHAP, "--target", "unit:D.nothing:0"], ["all layers"]),
    "a channel that is not there": ([*SHAP, "--target", "unit:D.blocks.0.conv:99999"], ["layer"]),
    "a target that the method cannot serve": ([*EXPLAIN, "--method", "grad-cam", "--target", "critic@G"], ["grad-cam"]),
    "a label of a critic that takes none": ([*SHAP, "--target", "critic(3)"], ["critic(3)", "takes none"]),
    "a layer that is not used by itself": (
        [*SHAP, "--target", "unit:D.blocks.0.conv:0"],
        ["be used in a forward", "such as blocks.0"],
    ),
    "rows of a method without interim results": (
        [*EXPLAIN, "--method", "directions", "--rows", "10"],
        ["--rows", "directions", "all samples together"],
    ),
    "more samples than there are": (
        ["explain", "RUN", "--method", "saliency", "--num-samples", "20001"],
        ["at most 18000", "--samples generated"],
    ),
    "a classifier that breaks later": (
        [*SHAP, "--classifier", "my_rules:raises_later", "--target", "class:0"],
        ["my_rules:raises_later", "KeyError: 3"],
    ),
    "labels that are no names": (
        [*SHAP, "--classifier", "my_rules:named_by_number", "--target", "class:0"],
        ["labels of my_rules:named_by_number must be a list of names, got 2"],
    ),
    "outputs that are whole numbers": (
        [*SHAP, "--classifier", "my_rules:of_integers", "--target", "class:0"],
        ["floating-point", "int8"],
    ),
    "a classifier of other classes than the data's": (
        [*EXPLAIN, "--method", "probe-classifier", "--classifier", "my_rules:halves"],
        ["below 2", "classifier of the data's classes"],
    ),
    "neighbours of latents": (
        [*EXPLAIN, "--method", "retrieval", "--target", "critic@G"],
        ["function of images for retrieval", "leave @G out"],
    ),
    "a classifier that is not there": ([*SHAP, "--classifier", "nothing"], ["--classifier", "package.module"]),
    "a data set misspelt": ([*SHAP, "--classifier", "fashion-mist"], ["fashion-mnist"]),
    "a file that is not there": ([*SHAP, "--classifier", "nothing.onnx"], ["nothing.onnx"]),
    "a module that is not there": ([*SHAP, "--classifier", "nothing:rule", "--target", "class:0"], ["nothing:rule"]),
    "a classifier of another size": (
        [*SHAP, "--classifier", "my_rules:wrong_size", "--target", "class:0"],
        ["take images of 1x28x28 in [-1, 1]"],
    ),
    "a classifier of another range": (
        [*SHAP, "--classifier", "my_rules:of_bytes", "--target", "class:0"],
        ["in [-1, 1]", "ValueError: these are no bytes", "--classifier-range"],
    ),
    "a range that is none": ([*SHAP, "--classifier", "my_rules:halves", "--classifier-range", "1,0"], ["LOW,HIGH"]),
    "a range of nothing": ([*SHAP, "--classifier-range", "0,1"], ["--classifier"]),
    "outputs that are not finite": (
        [*SHAP, "--classifier", "my_rules:broken", "--target", "class:0"],
        ["finite", "my_rules:broken"],
    ),
    "perturbed outputs that are not finite": (
        [*SHAP, "--samples", "real", "--classifier", "my_rules:breaks_later", "--target", "class:0:logit"],
        ["finite"],
    ),
    "a constant function without gradient": (
        [*GRADIENTS, "--classifier", "my_rules:constant", "--target", "class:0"],
        ["differentiable"],
    ),
    "a constant function": (
        [*GRADIENTS, "--classifier", "my_rules:constant_with_a_gradient", "--target", "class:0"],
        ["exactly zero"],
    ),
    "zero samples": (["explain", "RUN", "--method", "kernel-shap", "--num-samples", "0"], ["--num-samples"]),
    "a budget that is none": ([*SHAP, "--budget", "soon"], ["--budget", "10m"]),
    "no rows": ([*SHAP, "--rows", "0"], ["--rows"]),
    "a width of what draws nothing": ([*GRADIENTS, "--width", "0.1"], ["--width", "kernel-shap"]),
    "all methods with one method's option": (
        ["explain", "RUN", "--method", "all", "--set", "cells=2"],
        ["--method all", "--budget"],
    ),
    "a target that no method knows": (
        ["explain", "RUN", "--method", "all", "--workers", "0", "--target", "clas:2"],
        ["did you mean class"],
    ),
    "a class that no method finds": (
        [*EXPLAIN, "--method", "all", "--classifier", "my_rules:halves", "--target", "class:uper"],
        ["did you mean upper"],
    ),
    "samples of no kind": ([*SHAP, "--samples", "fake"], ["generated"]),
}


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_explained_is_refused_in_one_line(arguments, words, run, expect_refused):
    before = files_below(run)
    expect_refused(of(arguments, run), *words)
    assert files_below(run) == before


def test_a_run_without_a_checkpoint_is_refused(run, expect_refused):
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    expect_refused(of(SHAP, run), "checkpoint")


def test_a_constant_function_is_explained_as_not_better_than_random(run):
    done = of([*SHAP, "--classifier", "my_rules:constant", "--target", "class:0"], run)
    assert done.exit_code == 0, done.stderr
    assert "not better than random" in done.stdout
    assert done.stdout.splitlines()[0].split()[-1] == "verdict"
    assert re.search(r"^deletion_auc .* not better$", done.stdout, flags=re.MULTILINE)
    assert "nan" not in done.stdout


def test_a_warning_is_one_note_and_no_line_of_python(run, monkeypatch):
    monkeypatch.setattr(attribution, "check_range", lambda *_: ["inputs lie in [0, 1]"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = of([*EXPLAIN, "--method", "saliency", "--set", "cells=2"], run)
    assert done.exit_code == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "inputs lie in" in line] == ["note: inputs lie in [0, 1]"]
    assert not [one for one in caught if "inputs lie in" in str(one.message)]


def test_a_users_function_is_explained_where_it_looks(run):
    done = of([*SHAP, "--classifier", "my_rules:halves", "--target", "class:upper:logit", "--json"], run)
    assert done.exit_code == 0, done.stderr
    page = json.loads(done.stdout)
    assert page["target"] == "class:0:logit"
    assert page["meta"]["classifier"]["classifier"] == "my_rules:halves"
    shares = Explanation.load(Path(page["path"])).values["segment_weights"].abs()
    assert shares[:, 2:].max() < 1e-6 * shares[:, :2].max()  # the lower cells have no part in the upper half's mean


def test_a_function_that_cannot_travel_is_refused_before_any_worker_is_started(run):
    lock = threading.Lock()

    def guarded(images: torch.Tensor) -> torch.Tensor:
        with lock:
            return images.flatten(1)[:, :2]

    before = files_below(run)
    with pytest.raises(CallableError, match=r"be picklable.*use workers=0"):
        load(run).explain("kernel-shap", target="class:0", classifier=guarded, num_samples=1, workers=1)
    assert files_below(run) == before
    assert load(run).explain("kernel-shap", target="class:0", classifier=guarded, num_samples=1, workers=0).scores


def interrupt_after(monkeypatch, chunks: int) -> None:
    """Let the ``chunks``-th chunk of this process be interrupted as by Ctrl-C, once."""
    left, plain = [chunks], Explainer.run

    def run(self, chunk):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return plain(self, chunk)

    monkeypatch.setattr(Explainer, "run", run)


def test_an_interrupt_keeps_what_is_finished_and_nothing_half_written(run, monkeypatch):
    interrupt_after(monkeypatch, 8)
    done = call("explain", run, "--workers", 0, "--num-samples", 6, "--method", "kernel-shap", "--set", "cells=2")
    assert done.exit_code == 130, (done.output, done.exception)
    assert done.stderr.splitlines()[-1].startswith("interrupted: ")
    (kept,) = (path for path in (run / "explanations").iterdir() if path.is_dir())
    found = Explanation.load(kept)
    assert 1 <= len(found.inputs["x"]) < 6
    assert found.meta["stopped"]["reason"] == "interrupted"
    assert f"note: {found.meta['interim']}" in done.stderr.splitlines()
    assert list(kept.glob("*.png"))
    for page in (kept / "explanation.html", kept.parent / "index.html"):
        assert found.meta["interim"] in page.read_text(encoding="utf-8"), "it says that it is not whole"
    assert str(kept) in done.stderr


def test_an_interrupt_before_anything_is_finished_leaves_nothing(run, monkeypatch):
    interrupt_after(monkeypatch, 1)
    before = files_below(run)
    done = of(SHAP, run)
    assert done.exit_code == 130
    assert files_below(run) == before


def test_a_damaged_explanation_does_not_hide_the_others_in_the_report(run):
    assert of(SHAP, run).exit_code == 0
    assert of([*EXPLAIN, "--method", "directions"], run).exit_code == 0
    file = run / "explanations" / "kernel-shap-001" / "values.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    done = call("report", run)
    assert done.exit_code == 0, done.stderr
    page = (run / "report.html").read_text()
    assert "directions-001" in page
    assert "kernel-shap-001" in page  # and what is wrong with it
    assert "match the SHA-256" in page


def _folder_of_two_classes(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 150)):
        (folder / name).mkdir(parents=True)
        for index in range(40):
            pixels = rng.integers(low, low + 100, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


def test_a_classifier_is_trained_once_saved_and_explained(tmp_path, run):
    _folder_of_two_classes(tmp_path / "two")
    options = ("--data", tmp_path / "two", "--set", "data.resolution=28", "--json")
    done = call("classifier", *options, "--out", tmp_path / "saved")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["held_out_accuracy"] >= 0.9  # dark against light: nothing easier
    assert set(facts["classes"]) == {"dark", "light"}
    again = json.loads(call("classifier", *options).stdout)
    assert again["sha256"] == facts["sha256"]  # from the cache
    arguments = [*SHAP, "--classifier", str(tmp_path / "saved"), "--target", "class:light", "--json"]
    page = json.loads(of(arguments, run).stdout)
    assert page["meta"]["classifier"]["extractor_sha256"] == facts["sha256"]
    assert page["target"] == "class:1:log-probability"


def test_a_classifier_is_not_saved_over_anything(tmp_path, expect_refused):
    _folder_of_two_classes(tmp_path / "two")
    expect_refused(call("classifier", "--data", tmp_path / "two", "--out", tmp_path / "two"), "--out", "not exist")
    points = ("--data", "gaussians-25", "--set", "data.channels=2", "--set", "data.resolution=1")
    expect_refused(call("classifier", *points), "images")
    expect_refused(call("classifier", "--data", "fashion-mist"), "fashion-mnist")
