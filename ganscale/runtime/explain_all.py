"""Every method on one run within one budget of time: first all of them, then more samples where time is left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ganscale.errors import GanscaleError, RunFailed, UserError
from ganscale.explain import EXPLAINERS, BudgetSpent, Explanation, Limits
from ganscale.files import remove_directory, replace_text
from ganscale.runtime.classifiers import find_classifier
from ganscale.runtime.explain_fanout import actor_pool, explain_networks
from ganscale.runtime.explain_run import keep, make_job

if TYPE_CHECKING:
    from pathlib import Path

    from ganscale.runtime.run import Run

LEAST_BUDGET_S = 10.0
LEAST_S = 1.0  # of a method's share
GROWTH = 2  # times the samples, where time is left for more
WORTH = 1.25  # times the samples, below which another go is not worth its time
REPORT = 1.5  # times what writing its page took: the report reads the panels again before it writes them
SPARE = 0.03  # of the budget: what a prediction of time may be wrong by
MOST_SAMPLES = 1024


@dataclass(kw_only=True, slots=True)
class Made:
    """What became of one method: its explanation, or in words why there is none."""

    method: str
    explanation: Explanation | None = None
    path: Path | None = None
    asked: int = 0  # samples
    seconds: float = 0.0  # of the last go, with writing
    writing: float = 0.0
    drawing: float = 0.0  # of its page, part of writing
    reason: str = ""
    late: bool = False  # its share of the time did not do
    broken: bool = False
    enough: bool = False  # more samples did not do

    def facts(self) -> dict[str, Any]:
        """Return what explanations/all.json says of it."""
        if self.explanation is None:
            return {"method": self.method, "left_out": self.reason or "interrupted"}
        stopped = self.explanation.meta.get("stopped", {})
        facts = {"method": self.method, "path": self.path.name, "samples": self.asked, "seconds": self.seconds}
        return facts | ({"stopped": stopped} if stopped else {})

    def held(self, what: str = "") -> str:
        """Return in words how many samples there are, or of which pieces how many."""
        stopped = self.explanation.meta.get("stopped", {})
        parts = {name: "{} of {}".format(*made) for name, made in stopped.items() if name != "reason"}
        samples = f"{parts.pop('samples', self.asked)} {what}".strip()
        return ", ".join([samples, *(f"{words} {name}" for name, words in parts.items())])

    @property
    def can_grow(self) -> bool:
        """Whether more samples may be asked for."""
        return self.explanation is not None and self.asked < MOST_SAMPLES and not self.enough


@dataclass(kw_only=True, slots=True)
class AllMade:
    """What all methods made: ``made`` by method, the one ``report``, and the time against the budget."""

    made: list[Made]
    report: Path
    seconds: float
    budget: float | None
    interrupted: bool


def explain_all(
    run: Run,
    *,
    target: str = "critic",
    num_samples: int = 8,
    workers: int = 1,
    seed: int = 0,
    classifier: Any = None,
    samples: str = "both",
    budget: float | None = None,
    address: str | None = None,
    say: Callable[[str], None] = lambda words: None,
) -> AllMade:
    """Explain ``run`` by every method that can serve it, within ``budget`` seconds, and write one report.

    Each method gets an even share of the time that is left; what it does not need goes to the others, and in the end to
    more samples. A method that the target does not fit is left out with the reason. Ctrl-C keeps what is finished and
    still writes the report. Raises the UserError family, before anything is written, where the target, the classifier
    or the samples would be refused whatever the method; RunFailed, after the report, where a method failed in a way
    that is no refusal.
    """
    refuse_short(budget)
    whole = _All(run, target, num_samples, workers, seed, classifier, samples, budget, say)
    whole.check()
    interrupted = False
    address = address or run.config.runtime.address
    with actor_pool(workers, address) if workers else nullcontext(None) as actors:
        whole.actors = actors
        try:
            whole.first_goes()
            whole.second_chances()
            whole.further_goes()
        except KeyboardInterrupt:
            interrupted = True
    whole.write_record()
    report = run.report()
    broken = [made for made in whole.made if made.broken]
    if broken:
        words = "; ".join(f"{made.method}: {made.reason}" for made in broken)
        raise RunFailed(f"{len(broken)} methods failed ({words}); the others are in {report}")
    return AllMade(made=whole.made, report=report, seconds=whole.spent(), budget=budget, interrupted=interrupted)


def refuse_short(budget: float | None) -> None:
    """Raise UserError for a budget in which not even one method could end."""
    if budget is not None and budget < LEAST_BUDGET_S:
        rule = f"be at least {LEAST_BUDGET_S:g}s with --method all: starting and the report alone take seconds"
        raise UserError("--budget", rule, f"{budget:g}s", "use --budget 1m, or one method")


class _All:
    def __init__(
        self,
        run: Run,
        target: str,
        num_samples: int,
        workers: int,
        seed: int,
        classifier: Any,
        samples: str,
        budget: float | None,
        say: Callable[[str], None],
    ) -> None:
        self.run, self.num_samples, self.workers, self.budget, self.say = run, num_samples, workers, budget, say
        self.actors: Any = None
        self.began = time.monotonic()
        self.before = sum(path.is_dir() for path in (run.path / "explanations").glob("[!.]*"))  # are drawn as well
        self.made = [Made(method=method) for method in EXPLAINERS]
        if classifier is not None:
            classifier = find_classifier(classifier, run.config.data)
        self.request = {"target": target, "seed": seed, "classifier": classifier, "samples": samples, "options": {}}

    def check(self) -> None:
        """Refuse now what no method could serve; the method asked for here needs nothing of its own."""
        make_job(self.run, "kernel-shap", num_samples=self.num_samples, **self.request).subject()

    def spent(self) -> float:
        """Return the seconds since the beginning."""
        return time.monotonic() - self.began

    def left(self) -> float:
        """Return the seconds that methods may still use: without those of the report, which shows all panels again."""
        if self.budget is None:
            return float("inf")
        drawn = [made.drawing for made in self.made if made.path is not None]
        before = self.before * (sum(drawn) / len(drawn) if drawn else 0.0)
        report = 1.0 + REPORT * (sum(drawn) + before)
        return self.budget * (1 - SPARE) - self.spent() - report

    def write_record(self) -> None:
        """Write explanations/all.json: what was made, and why the rest was not."""
        listed = [made.facts() for made in self.made]
        page = {"budget_s": self.budget, "seconds": self.spent(), "target": self.request["target"], "methods": listed}
        folder = self.run.path / "explanations"
        folder.mkdir(exist_ok=True)
        replace_text(folder / "all.json", json.dumps(page, indent=2))

    def first_goes(self) -> None:
        """Give every method its share of the time."""
        for place, made in enumerate(self.made):
            if self.left() <= 0:
                made.reason = f"nothing was left of the {self.budget:g} s"
                continue
            self.go(made, self._first_count(made), max(LEAST_S, self.left() / (len(self.made) - place)))

    def second_chances(self) -> None:
        """Try what was late again, with fewer samples and with the time that the others left."""
        late = [made for made in self.made if made.late]
        for place, made in enumerate(late):
            share = self.left() / (len(late) - place)
            if share >= LEAST_S:
                self.go(made, max(EXPLAINERS[made.method].least_samples, self.num_samples // 4), share)

    def _first_count(self, made: Made) -> int:
        return max(self.num_samples, EXPLAINERS[made.method].least_samples)

    def further_goes(self) -> None:
        """Ask for more samples, of the methods with the fewest first, as long as that fits."""
        while self.budget is not None:
            fits = [(made, count) for made in self.made if made.can_grow and (count := self._next_count(made))]
            if not fits:
                return
            made, count = min(fits, key=lambda pair: (pair[0].asked, pair[0].seconds))
            if not self.go(made, count, self.left()):
                made.enough = True  # it went wrong with more

    def _next_count(self, made: Made) -> int:
        """Return how many samples of ``made`` fit into the time that is left; 0 where that is not worth it."""
        a_sample = (made.seconds - made.writing) / made.asked
        fits = (self.left() - 1.3 * made.writing) / max(a_sample, 1e-3)
        count = min(made.asked * GROWTH, int(fits), MOST_SAMPLES)
        return count if count >= WORTH * made.asked else 0

    def go(self, made: Made, count: int, share: float) -> bool:
        """Explain by one method and keep it; in place of an earlier go of the same. Return whether that went well."""
        began = time.monotonic()
        limits = Limits() if self.budget is None else Limits(seconds=max(LEAST_S / 2, share - made.writing))
        try:
            job = make_job(self.run, made.method, num_samples=count, **self.request)
            found = explain_networks(job, workers=self.workers, limits=limits, actors=self.actors)
            interrupted = found.meta.get("stopped", {}).get("reason") == "interrupted"
            if made.explanation is not None and not _holds_more(found, count, made):
                if interrupted:
                    raise KeyboardInterrupt
                return False
            writing = time.monotonic()
            path, drawing = keep(self.run, found)
        except Exception as error:  # one method's failure is no reason to lose the others
            if made.explanation is None:
                self._left_out(made, count, error)
            return False
        if made.path is not None:
            remove_directory(made.path)
        made.path, made.drawing = path, drawing
        made.explanation, made.asked, made.reason, made.late = found, _count(found, count), "", False
        made.seconds, made.writing = time.monotonic() - began, time.monotonic() - writing
        why = " (its time was up)" if "stopped" in found.meta and not interrupted else ""
        self.say(f"{made.method}: {made.held('samples')} in {made.seconds:.1f} s{why}")
        if interrupted:
            raise KeyboardInterrupt
        return True

    def _left_out(self, made: Made, count: int, error: Exception) -> None:
        words = next(iter(str(error).splitlines()), "")
        is_ours = isinstance(error, GanscaleError)
        made.asked, made.reason = count, words if is_ours else f"{type(error).__name__}: {words}"
        made.late = isinstance(error, BudgetSpent)
        made.broken = not is_ours or (isinstance(error, RunFailed) and not made.late)
        self.say(f"{made.method}: {'put off' if made.late else 'left out'}: {made.reason}")


def _count(explanation: Explanation, asked: int) -> int:
    stopped = explanation.meta.get("stopped", {})
    return stopped.get("samples", [asked])[0]


def _holds_more(found: Explanation, count: int, made: Made) -> bool:
    """Whether a further go holds more samples, and no smaller a part of classes, draws, layers or units."""
    return _count(found, count) > made.asked and _part(found) >= _part(made.explanation)


def _part(explanation: Explanation) -> float:
    pieces = {what: made for what, made in explanation.meta.get("stopped", {}).items() if what != "reason"}
    pieces.pop("samples", None)
    return min((done / total for done, total in pieces.values()), default=1.0)
