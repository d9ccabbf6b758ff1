"""What a run computes with is what was asked for: said before and while it trains, and kept when it is looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from calls import TINY, call

from ganscale import ops
from ganscale.ops import _extension
from ganscale.runtime import load

REFERENCE = "plain torch (ops.impl=reference)"
COMPILED = ops.build_info()["compiled"]
WGAN = ["--preset", "wgan-gp-fashion", *TINY]
PLAIN = ["--set", "ops.impl=reference"]


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    monkeypatch.delenv("GANSCALE_IMPL", raising=False)
    before = ops.use_impl("auto")
    yield
    assert ops.use_impl(before) == "auto"  # no run leaves its choice to what comes after it in the process


@pytest.fixture
def no_core(monkeypatch):
    """Whatever calls the compiled core raises; that it is there can be seen."""

    def core():
        raise AssertionError("the compiled core was called")

    monkeypatch.setattr(_extension, "core", core)


@pytest.fixture
def plain(tmp_path, no_core) -> tuple[list[str], Path]:
    """The lines that a launch with plain torch said, and its run directory; the core was not called."""
    done = call("launch", "--workers", 0, "--name", "plain", "--runs-dir", tmp_path, "--kimg", 0.032, *WGAN, *PLAIN)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stderr.splitlines(), tmp_path / "plain"


@pytest.mark.skipif(not COMPILED, reason="the compiled core is not built")
def test_an_ordinary_run_calls_the_core(tmp_path, no_core):
    done = call("launch", "--workers", 0, "--name", "run", "--runs-dir", tmp_path, "--kimg", 0.032, *WGAN)
    assert "the compiled core was called" in done.stderr + str(done.exception)


def test_a_run_with_plain_torch_calls_the_core_neither_in_training_nor_when_it_is_looked_at(plain):
    header, path = plain
    assert f"kernels: {REFERENCE}" in header
    assert any(line.startswith("penalty: wgan-gp, autograd (impl is 'reference')") for line in header)
    run = load(path)
    assert len(run.generate(2)) == 2
    explanation = run.explain("occlusion", num_samples=1, workers=0)
    assert explanation.scores


@pytest.mark.skipif(not COMPILED, reason="the compiled core is not built")
def test_how_a_run_is_looked_at_follows_its_own_setting(plain, monkeypatch):
    asked = []
    for name in ("norm_act", "conv_act"):
        monkeypatch.setattr(ops, name, _asking(getattr(ops, name), asked))
    run = load(plain[1])
    run.generate(2)
    assert set(asked) == {"reference"}
    run.explain("occlusion", num_samples=1, workers=0)
    assert set(asked) == {"reference"}


def _asking(operator, asked):
    def call(*arguments, **options):
        asked.append(ops._choice.resolve("auto"))
        return operator(*arguments, **options)

    return call


@pytest.mark.parametrize("settings", [PLAIN, []], ids=["reference", "auto"])
def test_a_dry_run_says_which_path_is_on(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = REFERENCE if settings else ops.describe()
    said = call("launch", "--dry-run", *WGAN, *settings).stdout
    assert [line.split(None, 1)[1] for line in said.splitlines() if line.startswith("kernels ")] == [expected]
    assert json.loads(call("launch", "--dry-run", "--json", *WGAN, *settings).stdout)["kernels"] == expected


def test_doctor_says_which_path_is_on(monkeypatch):
    checks = {check["name"]: check["said"] for check in json.loads(call("doctor", "--json").stdout)}
    if COMPILED:
        assert checks["compiled core"].endswith(f"in use: {ops.describe()}")
        monkeypatch.setenv("GANSCALE_IMPL", "reference")
        checks = {check["name"]: check["said"] for check in json.loads(call("doctor", "--json").stdout)}
        assert checks["compiled core"].endswith(f"in use: {REFERENCE}")
    else:
        assert checks["compiled core"].startswith("absent (")
