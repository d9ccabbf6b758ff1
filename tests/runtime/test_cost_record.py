"""The cost of work that is spread: spans as they were, in little space, by the driver's clock alone."""

from __future__ import annotations

import time

import pytest

from ganscale.explain import Partial
from ganscale.runtime.cost_record import FINEST, Record, joined

pytestmark = pytest.mark.distributed


def test_spans_are_joined_where_the_pause_between_them_is_too_short_to_see():
    spans = [(2.0, 3.0), (0.0, 1.0), (1.05, 2.0), (4.0, 5.0)]
    assert joined(spans, gap=0.1) == [[0.0, 3.0], [4.0, 5.0]]
    assert joined(spans, gap=0.01) == [[0.0, 1.0], [1.05, 3.0], [4.0, 5.0]]
    assert joined([(0.0, 5.0), (1.0, 2.0)], gap=0.1) == [[0.0, 5.0]], "one inside another takes nothing away"


def test_however_many_chunks_there_are_the_timeline_stays_short():
    record = Record()
    record.spans["a:1"] = [(place * 0.01, place * 0.01 + 0.004) for place in range(20_000)]
    [spans] = record.facts(1)["timeline"].values()
    assert len(spans) <= FINEST


def test_a_chunk_was_in_work_for_its_own_seconds_before_it_came_back_and_waited_the_rest():
    record, handed_over = Record(), time.perf_counter()
    record.began = handed_over - 10
    record.add(Partial(round=0, items=(), seconds=0.25), handed_over=handed_over - 1, process="a:1", memory_mib=7)
    [(begin, end)] = record.spans["a:1"]
    assert end >= 10
    assert end - begin == pytest.approx(0.25)
    facts = record.facts(2)
    assert facts["queue_wait_seconds"] >= 0.75
    assert (facts["chunks_of_workers"], facts["workers_replaced"], record.peak(3)) == (1, 0, 7)
    assert record.facts(0) == {}


def test_a_third_process_of_two_workers_is_one_that_was_replaced():
    record = Record()
    for process in ("a:1", "a:2", "a:3", "a:1"):
        record.add(Partial(round=0, items=()), handed_over=record.began, process=process, memory_mib=1)
    assert record.facts(2)["workers_replaced"] == 1
