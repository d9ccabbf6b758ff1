"""``ganscale explain --method all``: one report, whatever fails, is cut short or interrupted."""

from __future__ import annotations

import json

import pytest
from calls import call, files_below
from explaining import EXPLAIN, of

from ganscale.explain import EXPLAINERS, Explanation, Limits
from ganscale.runtime import explain_all, load

pytestmark = pytest.mark.usefixtures("user_module")


def test_all_methods_write_one_report_that_names_those_left_out(run, monkeypatch):
    class OfLatents(EXPLAINERS["kernel-shap"]):
        name = "of-latents"
        domains = ("z",)

    monkeypatch.setitem(EXPLAINERS, "of-latents", OfLatents)
    served = ("exact-shapley", "directions", "kernel-shap")
    monkeypatch.setattr(explain_all, "EXPLAINERS", {name: EXPLAINERS[name] for name in (*served, "of-latents")})
    found = explain_all.explain_all(load(run), num_samples=1, workers=0)
    made = {one.method: one for one in found.made}
    assert "latent" in made["of-latents"].reason  # which is no reason to stop
    for name in served:
        assert Explanation.load(made[name].path).scores
        assert len(list((run / "explanations").glob(f"{name}-*"))) == 1
    page = found.report.read_text()
    assert all(made[name].path.name in page for name in served)
    for said in (page, (run / "explanations" / "index.html").read_text()):
        assert "of-latents" in said  # which was left out,
        assert "must be a function of the latent" in said  # and why


def test_time_that_is_left_buys_more_samples_until_no_more_fit(run, monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock, plain, goes = Clock(), explain_all.explain_networks, []

    def slowly(job, **options):
        count = len(next(iter(job.request.inputs.values())))
        clock.now += 2.0 * count  # two seconds a sample, whatever this machine takes
        goes.append((job.request.method, count))
        return plain(job, **options)

    monkeypatch.setattr(explain_all, "time", clock)
    monkeypatch.setattr(explain_all, "explain_networks", slowly)
    few = ("exact-shapley", "directions")
    monkeypatch.setattr(explain_all, "EXPLAINERS", {name: EXPLAINERS[name] for name in few})
    found = explain_all.explain_all(load(run), num_samples=1, workers=0, budget=40.0)
    assert 0.6 * 40 <= found.seconds <= 40  # a further go makes all its samples anew, so the last one may not fit
    counts = {name: [count for method, count in goes if method == name] for name in few}
    assert all(each == sorted(each) and len(each) > 1 for each in counts.values())
    assert {one.method: one.asked for one in found.made} == {name: each[-1] for name, each in counts.items()}
    assert len(list((run / "explanations").glob("*-*"))) == len(few)  # a further go takes the place of the first


def test_a_further_go_that_is_cut_short_takes_no_fuller_one_away(run, monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock, plain, goes, said = Clock(), explain_all.explain_networks, [], []

    def cut_later(job, **options):
        goes.append(len(job.request.inputs["z"]))
        clock.now += 2.0
        options["limits"] = Limits() if len(goes) == wanted else Limits(rows=1)
        return plain(job, **options)

    monkeypatch.setattr(explain_all, "time", clock)
    monkeypatch.setattr(explain_all, "explain_networks", cut_later)
    monkeypatch.setattr(explain_all, "EXPLAINERS", {"class-generation": EXPLAINERS["class-generation"]})
    asked = {"classifier": "my_rules:halves", "num_samples": 1, "workers": 0, "budget": 20.0}
    wanted = 1
    (made,) = explain_all.explain_all(load(run), say=said.append, **asked).made
    assert goes == [1, 2]  # the second would have held one class of two
    assert len(made.explanation.values["hits"]) == 2
    assert said == ["class-generation: 1 samples in 2.0 s"]
    clock.now, wanted = 0.0, 2
    goes.clear()
    said.clear()
    (made,) = explain_all.explain_all(load(run), say=said.append, **asked).made
    assert said[0] == "class-generation: 1 samples, 1 of 2 classes in 2.0 s (its time was up)"
    assert said[1].startswith("class-generation: 2 samples in")
    assert len(made.explanation.values["hits"]) == 2


def test_an_interrupt_of_all_methods_keeps_those_that_are_done_and_still_writes_the_report(run, monkeypatch):
    def go(whole, made, *_):
        if made.method == "occlusion":
            raise KeyboardInterrupt
        return plain(whole, made, *_)

    plain = explain_all._All.go
    monkeypatch.setattr(explain_all._All, "go", go)
    few = {name: EXPLAINERS[name] for name in ("directions", "occlusion", "lime")}
    monkeypatch.setattr(explain_all, "EXPLAINERS", few)
    done = of([*EXPLAIN, "--method", "all"], run)
    assert done.exit_code == 130
    assert "occlusion, lime: left out: interrupted" in done.stdout
    assert "directions-001" in (run / "report.html").read_text()
    assert [path.name for path in (run / "explanations").iterdir() if path.is_dir()] == ["directions-001"]


def test_an_explanation_that_cannot_be_drawn_takes_no_other_with_it(run, monkeypatch):
    plain = explain_all.keep

    def keep(run, found):
        if found.method == "kernel-shap":
            raise ZeroDivisionError("nothing to draw")
        return plain(run, found)

    monkeypatch.setattr(explain_all, "keep", keep)
    few = {name: EXPLAINERS[name] for name in ("kernel-shap", "directions")}
    monkeypatch.setattr(explain_all, "EXPLAINERS", few)
    done = of([*EXPLAIN, "--method", "all"], run)
    assert done.exit_code == 1
    assert "kernel-shap: ZeroDivisionError: nothing to draw" in done.stderr
    assert "directions-001" in (run / "report.html").read_text()
    listed = json.loads((run / "explanations" / "all.json").read_text())["methods"]
    assert ["left_out" in one for one in listed] == [True, False]


def test_a_method_that_breaks_takes_no_other_with_it(run, monkeypatch):
    class Broken(EXPLAINERS["kernel-shap"]):
        name = "kernel-shap"

        def first_round(self):
            raise ZeroDivisionError("nothing to share")

    few = {"kernel-shap": Broken, "directions": EXPLAINERS["directions"]}
    monkeypatch.setattr(explain_all, "EXPLAINERS", few)
    monkeypatch.setitem(EXPLAINERS, "kernel-shap", Broken)
    done = of([*EXPLAIN, "--method", "all"], run)
    assert done.exit_code == 1
    assert "kernel-shap: ZeroDivisionError: nothing to share" in done.stderr
    assert [path.name for path in (run / "explanations").iterdir() if path.is_dir()] == ["directions-001"]
    assert "directions-001" in (run / "report.html").read_text()


@pytest.mark.parametrize("where", [("--workers", 0), ("--submit", "--address", "http://127.0.0.1:1")])
def test_a_budget_that_only_the_start_would_fill_is_refused_with_nothing_written_or_sent(run, where):
    before = files_below(run)
    done = call("explain", run, "--method", "all", "--budget", "2s", *where)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert "--budget must be at least 10s with --method all" in line
    assert line.endswith("use --budget 1m, or one method")
    assert files_below(run) == before


@pytest.mark.parametrize(
    ("wrong", "words"),
    [("cells=x", "kernel-shap option cells must be a valid integer"), ("cell=3", "did you mean cells")],
)
def test_an_option_that_the_method_refuses_is_refused_before_a_cluster_is_asked(run, wrong, words):
    nowhere = ("--submit", "--address", "http://127.0.0.1:1")
    done = call("explain", run, "--method", "kernel-shap", "--set", wrong, *nowhere)
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert words in line
