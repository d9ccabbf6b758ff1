"""Laws of the measurements: what a line says, that nothing is compared which differs, that accounting is exact."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ganscale.bench import CLAIMS, Line, Settings
from ganscale.bench.accounting import BACKWARD, FORWARD, convolutions, peak_bytes
from ganscale.bench.lines import Case, check_agreement, compare
from ganscale.bench.peers import functional_penalty_gradient, plain_critic, textbook_penalty, without_zero_terms
from ganscale.bench.penalty import gradients, setting
from ganscale.bench.writing import markdown, verdict, words

pytestmark = pytest.mark.alone

CASE = Case(claim="penalty", what="something", shape="2x3")


def test_a_ratio_above_one_means_ours_is_better_and_a_goal_is_judged_by_it():
    line = CASE.line("eager", 30.0, 20.0, goal=1.4)
    assert line.ratio == 1.5
    assert line.met is True
    assert CASE.line("eager", 30.0, 20.0, goal=1.6).met is False
    assert CASE.line("eager", 30.0, 20.0).met is None
    assert CASE.line("eager", None, 20.0, goal=1.6, note="the peer fails").met is None


def test_losses_are_written_like_wins():
    lines = [CASE.line("eager", 10.0, 20.0, goal=1.5), CASE.line("a | b", 10.0, 5.0)]
    page = markdown("Title", {"date": "today"}, lines, summaries={"penalty": "what it is"})
    assert "## penalty\n\nWhat it is.\n" in page
    assert "| something | 2x3 | f32 | nhwc | eager | 10 ms | 20 ms | 0.50 | 1.50 | NO |" in page
    assert "a \\| b" in page
    assert words(lines[0]).endswith("ratio 0.50, goal 1.50 NOT met")
    assert verdict(lines) == "0 of 1 goals met, 2 lines"


def test_a_peer_that_fails_is_a_line_with_its_reason():
    def fails() -> None:
        raise RuntimeError("no double backward here\nand more")

    settings = Settings(rounds=1)
    failed, fine = compare(settings, CASE, peers={"bad": fails, "good": lambda: None}, ours=lambda: None)
    assert failed.ratio is None
    assert failed.note == "the peer fails: RuntimeError: no double backward here"
    assert fine.ratio is not None


def test_results_that_differ_are_not_compared():
    exact = torch.ones(5)
    check_agreement([exact], [torch.full((5,), 1.0005)], 1e-3)
    off = torch.full((5,), 1.1)
    peers = {"eager": lambda: [exact], "other": lambda: [exact]}
    (line,) = compare(Settings(rounds=1), CASE, peers=peers, ours=lambda: [off], tolerance=1e-3)
    assert line.failed
    assert line.note == "AssertionError: the contenders differ by 1.0e-01 of their norm, more than 0.001"
    (line,) = compare(Settings(rounds=1), CASE, peers=peers, ours=lambda: [off * float("nan")], tolerance=1e-3)
    assert line.failed


def test_where_ours_raises_the_line_is_a_failure():
    def fails() -> None:
        raise ValueError("ours is broken")

    (line,) = compare(Settings(rounds=1), CASE, peers={"eager": lambda: None}, ours=fails)
    assert line.failed
    assert verdict([line]) == "0 of 0 goals met, 1 lines, 1 FAILED"
    assert words(line) == "penalty something 2x3 f32 nhwc: eager FAILED: ValueError: ours is broken"


def test_every_peer_computes_the_same_gradients_in_double_precision():
    critic, x = setting(32, "nchw", "cpu", batch=3)
    critic, x = critic.double(), x.double()
    truth = gradients(lambda x: textbook_penalty(critic, x), critic, x, "f32")
    light = without_zero_terms(critic)
    piecewise = gradients(lambda x: textbook_penalty(light, x), critic, x, "f32")
    parameters = {name: p.detach() for name, p in critic.named_parameters()}
    functional = functional_penalty_gradient(critic)(parameters, x)
    for exact, other, (name, third) in zip(
        truth, piecewise, [pair for pair in functional.items() if pair[1].ndim > 1], strict=True
    ):
        torch.testing.assert_close(other, exact, rtol=1e-11, atol=1e-13, msg=name)
        torch.testing.assert_close(third, exact, rtol=1e-11, atol=1e-13, msg=name)


def test_the_textbook_penalty_of_a_linear_critic_is_its_weight_norm():
    linear = nn.Linear(12, 1)
    expected = (linear.weight.norm() - 1).square().expand(5)
    torch.testing.assert_close(textbook_penalty(lambda x: linear(x.flatten(1)), torch.randn(5, 3, 2, 2)), expected)


def test_peak_memory_counts_what_is_alive_at_once():
    def two_at_once() -> torch.Tensor:
        first = torch.empty(1_000_000)  # 4 MB
        second = torch.empty(500_000)  # 2 MB more
        del first
        third = torch.empty(250_000)  # 1 MB where the first was
        return second[:1] + third[:1]

    assert 6_000_000 <= peak_bytes(two_at_once) <= 6_001_000


def test_convolutions_are_counted_forward_and_backward():
    x, weight = torch.randn(1, 2, 5, 5, requires_grad=True), torch.randn(3, 2, 3, 3, requires_grad=True)

    def call() -> None:
        y = F.conv2d(F.conv2d(x, weight), torch.ones(1, 3, 1, 1))
        y.sum().backward()

    assert convolutions(call) == {FORWARD: 2, BACKWARD: 2}


def test_the_plain_critic_has_the_channels_of_dcgan():
    assert [m.out_channels for m in plain_critic(64) if isinstance(m, nn.Conv2d)] == [64, 128, 256, 512]
    assert plain_critic(32)(torch.zeros(2, 3, 32, 32)).shape == (2, 1)


def bench(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ganscale", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_verb_prints_json_alone_and_writes_its_page(tmp_path: Path):
    page = tmp_path / "ops.md"
    done = bench("ops", "--only", "counts", "--quick", "--json", "--out", str(page))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["facts"]["command"] == "ganscale bench ops --only counts --device cpu --rounds 3 --quick"
    assert {line["claim"] for line in found["lines"]} == {"counts"}
    text = page.read_text()
    assert text.startswith("# Operators against their peers, cpu\n")
    for fact in ("date", "machine", "versions", "kernels", "measured", "command"):
        assert f"- {fact}: " in text


def test_mistakes_are_refused_before_anything_is_measured(tmp_path: Path):
    done = bench("--only", "penelty")
    assert done.returncode == 2
    assert "did you mean penalty" in done.stderr
    done = bench("--only", "counts", "--out", str(tmp_path / "nowhere" / "page.md"))
    assert done.returncode == 2
    assert "--out must lie in a folder that exists" in done.stderr
    if not torch.cuda.is_available():
        done = bench("--device", "cuda")
        assert done.returncode == 2
        assert "--device cuda must find a GPU" in done.stderr


def test_a_claim_whose_package_is_missing_is_left_out_by_name(tmp_path: Path):
    (tmp_path / "pydantic.py").write_text("raise ModuleNotFoundError('hidden', name='pydantic')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from ganscale.bench import Settings, measure\n"
        "print([line.note for line in measure(['iteration'], Settings())])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "['pydantic is not installed']", done.stderr


def test_every_claim_is_a_function_that_exists():
    import importlib

    for name, claim in CLAIMS.items():
        assert callable(getattr(importlib.import_module(claim.module), claim.function)), name
    assert isinstance(CASE.line("eager", 1.0, 1.0), Line)


def test_the_textbook_iteration_has_the_trainers_own_networks():
    from ganscale.bench.iteration import LATENT, recipe, textbook_nets
    from ganscale.training.process_group import solo_group
    from ganscale.training.state import TrainState

    state = TrainState(recipe(32, batch=4), solo_group("cpu"))
    critic, generator = textbook_nets(state, 32, "cpu")
    z, x = torch.randn(4, LATENT), torch.randn(4, 3, 32, 32)
    # one function of the same numbers, in float32 and another order of sums
    torch.testing.assert_close(generator(z), state.nets["generator"](z), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(critic(x)[:, 0], state.nets["critic"](x), rtol=1e-4, atol=1e-5)


def test_what_auto_leaves_to_torch_is_measured_by_name(monkeypatch):
    from ganscale.bench import elementwise
    from ganscale.ops._choice import PAYS_FROM

    asked = []
    monkeypatch.setattr(elementwise, "compare", lambda settings, case, **_: asked.append(case) or [])
    assert list(elementwise.measure(Settings())) == []
    keys = {"interpolate": "interpolate", "sample_norm": "sample_norm", "channel_sum": "channel_sum"}
    keys |= {f"bias_act {act} f+b": act for act in ("relu", "leaky_relu", "tanh")}
    for case in asked:
        name, _, mark = case.what.partition(", ")
        elements = torch.Size(map(int, case.shape.split("x"))).numel()
        assert (mark == "impl=fused") == (elements < PAYS_FROM[keys[name]]), case
    assert {case.what.endswith("impl=fused") for case in asked} == {True, False}
