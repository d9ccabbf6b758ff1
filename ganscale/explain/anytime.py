"""How an explanation is run; it can stop early and still hold, at a width, a time or some rows, or when it is asked to.

Where samples (or draws, classes, layers, units) are explained apart from one another, they are finished a few at a
time, scores and all, so that at any moment those that are done are an explanation: byte for byte the one of these
alone.
Where a map is itself a sample (of coalitions), it may also be drawn in sweeps until its intervals are narrow enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

from ganscale.errors import RunFailed
from ganscale.explain.errors import ExplainOptionError
from ganscale.explain.plan import Chunk, Partial
from ganscale.explain.types import Explanation

MOST_WAVES = 16  # of samples: each plans its scores anew
Key = tuple[int, int, int]  # round, explanation, part of a chunk
OnProgress = Callable[[int, int, str], None]
Execute = Callable[[list[Chunk]], Iterable[tuple[int, Partial]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """When to stop: no interval wider than ``width`` times its map's largest share; ``seconds``; ``rows`` forward.

    Samples that were begun in time are finished where nothing else would be kept: at least one always is.
    """

    width: float | None = None
    seconds: float | None = None
    rows: int | None = None

    def __post_init__(self) -> None:
        for name in ("width", "seconds", "rows"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ExplainOptionError(f"the limit on {name}", "be above 0", value, "leave it out for none")


class BudgetSpent(RunFailed):
    """The time was up before a method had anything to keep."""


class _Enough(Exception):
    """Raised in the midst of chunks: what is finished is all there will be."""


def drive(
    explainer: Any,
    *,
    execute: Execute | None = None,
    limits: Limits | None = None,
    at_once: int = 1,
    clock: Callable[[], float] = time.monotonic,
    on_progress: OnProgress | None = None,
) -> Explanation:
    """Run all rounds of an explainer within ``limits`` and return what was finished.

    ``execute`` runs chunks and yields (chunk.index, partial) in any order, duplicates allowed; without it they run
    here, one after the other. ``at_once`` samples are begun together; it changes no byte, nor does the order.
    An interrupt (Ctrl-C) after the first samples ends it in the same way. ``meta["stopped"]`` then says why and what is
    there. Raises ExplainOptionError for a width of a method that draws nothing and for rows of one that has no interim
    result, BudgetSpent where the time was up before such a one was done, and KeyboardInterrupt where nothing can be
    kept.
    ``on_progress(done, total, what)`` is told of samples, sweeps or chunks, whichever are finished one after the other.
    """
    return _Drive(explainer, execute, limits or Limits(), at_once, clock, on_progress).run()


class _Drive:
    """One run. What each chunk gave is kept by its key until the end, as what is finished early, narrow enough or of a
    later wave is a fold of another choice of chunks. That costs no memory: a fold holds the same arrays.
    """

    def __init__(
        self,
        explainer: Any,
        execute: Execute | None,
        limits: Limits,
        at_once: int,
        clock: Callable[[], float],
        on_progress: OnProgress | None,
    ) -> None:
        self.explainer, self.limits, self.clock = explainer, limits, clock
        self.execute = execute or (lambda chunks: ((chunk.index, explainer.run(chunk)) for chunk in chunks))
        self.began = clock()
        self.at_once = 1 if limits.rows is not None else at_once  # so that rows alone decide where it ends
        self.done: dict[Key, Partial] = {}
        self.rows = 0  # forward, also of what was given up again
        self.tell = on_progress or (lambda done, total, what: None)

    def run(self) -> Explanation:
        """Choose the way that fits the method and the limits."""
        if self.limits.width is not None:
            return self._by_sweeps()
        if self.explainer.samples_apart:
            return self._by_pieces()
        if self.limits.rows is not None:
            got = f"{self.explainer.name}: {self.explainer.together}"
            raise ExplainOptionError("--rows", "be asked of a method with interim results", got, "use fewer samples")
        return self._whole()

    def _whole(self) -> Explanation:
        self._rounds(self.explainer, self.explainer.plan(), can_stop=False)
        return self.explainer.finish(self._folded)

    def _by_pieces(self) -> Explanation:
        chunks, total, what = self.explainer.plan(), self.explainer.total, self.explainer.pieces
        places = {chunk.index: self.explainer.place_of(chunk) for chunk in chunks}
        finished, kept, reason = 0, None, None
        try:
            for end in self._ends(sorted({*places.values()}), total):
                if finished and (reason := self._no_more(end - finished, finished)):
                    break
                part = self.explainer if end == total else self.explainer.first(end)
                if not part.rounds_apart:
                    self.done = {key: partial for key, partial in self.done.items() if key[0] == 0}
                self._rounds(part, [chunk for chunk in chunks if places[chunk.index] < end], can_stop=finished > 0)
                kept, finished = (part, self._folded), end
                self.tell(finished, total, what)
        except _Enough:
            reason = "seconds"
        except KeyboardInterrupt:
            if not finished:
                raise
            reason = "interrupted"
        part, partial = kept
        explanation = part.finish(partial)
        return _marked(explanation, reason, {what: [finished, total]}) if reason else explanation

    def _ends(self, starts: list[int], total: int) -> list[int]:
        """Return how many pieces are finished after each wave.

        Waves of a method whose later rounds are of all pieces grow twofold, as each makes those rounds anew.
        """
        if self.explainer.rounds_apart:
            size = max(self.at_once, -(-len(starts) // MOST_WAVES) if self.limits.rows is None else 1)
            return [*starts[size::size], total]
        is_limited = self.limits.rows is not None or self.limits.seconds is not None
        return [*(starts[2**k] for k in range(len(starts)) if 2**k < len(starts) and is_limited), total]

    def _by_sweeps(self) -> Explanation:
        explainer = self.explainer
        chunks = explainer.plan()
        sweeps = {chunk.index: explainer.sweep_of(chunk) for chunk in chunks}
        if None in sweeps.values():
            remedy = "leave it out, or use kernel-shap or lime with fewer coalitions than there are"
            raise ExplainOptionError("--width", "be asked of a method that draws", explainer.name, remedy)
        own = [chunk for chunk in chunks if not explainer.is_control(chunk)]
        last, reason, narrowing = max(sweeps.values()), None, []
        reached = dict.fromkeys((chunk.explanation for chunk in own), -1)  # sample -> its last sweep
        widths = dict.fromkeys(reached, float("inf"))
        for sweep in range(last + 1):
            wide = [sample for sample, width in widths.items() if width > self.limits.width]
            now = [chunk for chunk in own if sweeps[chunk.index] == sweep and chunk.explanation in wide]
            try:
                self._run(now)
            except KeyboardInterrupt:
                if sweep == 0:
                    raise
                reason = "interrupted"
                break
            reached.update(dict.fromkeys(wide, sweep))
            self.tell(sweep + 1, last + 1, "sweeps")
            drawn = [chunk for chunk in own if sweeps[chunk.index] <= reached[chunk.explanation]]
            folded = self._fold_of(drawn)
            widths = dict(zip(reached, explainer.interval_widths(folded), strict=True))
            narrowing.append([folded.rows_forward, max(widths.values())])
            share = 1 / (2 + len(chunks) / len(own))  # the controls and the scores take as long again
            reason = "width" if max(widths.values()) <= self.limits.width else self._spent(share)
            if reason:
                break
        taken = [chunk for chunk in chunks if sweeps[chunk.index] <= reached[chunk.explanation]]
        self.done = {_key(chunk): self.done[_key(chunk)] for chunk in taken if _key(chunk) in self.done}
        self._rounds(explainer, taken, can_stop=False, deadline=False)
        explanation = explainer.finish(self._folded)
        explanation.meta.update(widths=list(widths.values()), widest_by_rows=narrowing, width=self.limits.width)
        early = reason and min(reached.values()) < last
        return _marked(explanation, reason, {"sweeps": [max(reached.values()) + 1, last + 1]}) if early else explanation

    def _rounds(self, explainer: Any, chunks: list[Chunk], *, can_stop: bool, deadline: bool = True) -> None:
        """Run the chunks that are not done and all later rounds of ``explainer``."""
        order: list[Chunk] = []
        while chunks:
            order += chunks
            self._run([c for c in chunks if _key(c) not in self.done], can_stop=can_stop, deadline=deadline)
            self._folded = self._fold_of(order)
            chunks = explainer.plan(self._folded)

    def _run(self, chunks: list[Chunk], *, can_stop: bool = True, deadline: bool = True) -> None:
        """Run chunks; past the deadline raise ``_Enough`` where something is kept already, else BudgetSpent."""
        by_index = {chunk.index: chunk for chunk in chunks}
        before, is_whole = len(self.done), self.limits.width is None and not self.explainer.samples_apart
        for index, partial in self.execute(chunks) if chunks else ():
            if _key(by_index[index]) not in self.done:  # else a duplicate
                self.done[_key(by_index[index])] = partial
                self.rows += partial.rows_forward
            if is_whole:
                self.tell(len(self.done), before + len(chunks), "chunks")
            late = deadline and self.limits.seconds is not None and self.clock() - self.began > self.limits.seconds
            if late and can_stop and len(self.done) and self.limits.width is None:
                raise _Enough
            if late and not self.explainer.samples_apart:
                words = f"{self.limits.seconds:.1f} s were up before {self.explainer.name} had a result"
                why = self.explainer.together
                raise BudgetSpent(f"{words}, and it has no interim one ({why}); give it more time, or fewer samples")
        missing = [chunk for chunk in chunks if _key(chunk) not in self.done]
        assert not missing, f"{len(missing)} of {len(chunks)} chunks came to nothing"

    def _fold_of(self, order: list[Chunk]) -> Partial:
        return reduce(self.explainer.merge, (self.done[_key(chunk)] for chunk in order))

    def _no_more(self, more: int, finished: int) -> str | None:
        """Return which limit forbids ``more`` pieces, judged by the ``finished`` ones."""
        if self.limits.rows is not None and self.rows * (finished + more) > self.limits.rows * finished:
            return "rows"
        spent = self.clock() - self.began
        if self.limits.seconds is not None and spent * (finished + more) > self.limits.seconds * finished:
            return "seconds"
        return None

    def _spent(self, share: float) -> str | None:
        """Return which limit is used up to this ``share`` by the map's own rows."""
        if self.limits.rows is not None and self.rows >= self.limits.rows * share:
            return "rows"
        if self.limits.seconds is not None and self.clock() - self.began >= self.limits.seconds * share:
            return "seconds"
        return None


def _key(chunk: Chunk) -> Key:
    return chunk.round, chunk.explanation, chunk.part


def _marked(explanation: Explanation, reason: str, made: dict[str, list[int]]) -> Explanation:
    """Say in ``meta`` why it ended early and what there is; all but a width that was reached makes it interim."""
    (what, (done, total)), *_ = made.items()
    explanation.meta["stopped"] = {"reason": reason, **made}
    if reason != "width":
        why = {"interrupted": "interrupted", "seconds": "the time was up", "rows": "the rows were spent"}[reason]
        explanation.meta["interim"] = f"interim result: {done} of {total} {what}, {why}"
        explanation.meta["warnings"] = [*explanation.meta["warnings"], explanation.meta["interim"]]
    return explanation
