"""The cost on an explanation's page: what was recorded, drawn to scale, and nothing that was not recorded."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from test_dashboards_report import Page

from ganscale.dashboards.cost_part import MOST_WORKERS, cost_part
from ganscale.dashboards.explanation_page import render
from ganscale.dashboards.explanation_parts import everything_made
from ganscale.explain import Explanation

WORKED = {
    "rows_forward": 36000,
    "rows_backward": 0,
    "worker_seconds": 6.0,
    "seconds": 4.0,
    "workers": 2,
    "threads": 1,
    "workers_replaced": 0,
    "timeline": {"a:1": [[1.0, 4.0]], "<b>:2": [[0.5, 1.0], [1.5, 4.0]]},
}


def with_cost(explanation: Explanation, cost: dict, **meta: object) -> Explanation:
    return replace(explanation, meta={**explanation.meta, "cost": cost, **meta})


def test_a_bar_is_as_long_as_the_work_and_stands_where_it_was_done(shapley):
    drawn = cost_part(with_cost(shapley, WORKED))
    bars = [
        tuple(map(float, found)) for found in re.findall(r'<rect class="busy" x="([\d.]+)".*?width="([\d.]+)"', drawn)
    ]
    lengths, second = [width for _, width in bars], bars[0][1] / 3
    assert lengths == pytest.approx([3 * second, 0.5 * second, 2.5 * second], abs=0.2)  # drawn to tenths of a pixel
    assert [x - bars[0][0] for x, _ in bars] == pytest.approx([0, -0.5 * second, 0.5 * second], abs=0.2)
    assert "&lt;b&gt;:2" in drawn
    assert "<b>:2" not in drawn


def test_the_words_say_rows_a_second_and_how_much_of_their_time_workers_worked(shapley):
    said = Page(cost_part(with_cost(shapley, {**WORKED, "workers_replaced": 1}))).text
    assert "36,000 rows forward in 4.00 s, 9,000 forward a second" in said
    assert "2 workers were at work 75 % of that time" in said
    assert "1 of them died and was replaced" in said


def test_without_workers_there_is_no_timeline_and_without_a_record_nothing(shapley):
    assert shapley.meta["cost"].keys() == {"rows_forward", "rows_backward", "worker_seconds"}
    alone = cost_part(shapley)
    assert "in one process" in alone
    assert "<svg" not in alone
    assert cost_part(with_cost(shapley, {})) == ""


def test_many_workers_are_counted_where_they_are_not_drawn(shapley):
    many = {f"node:{place}": [[0.0, 4.0]] for place in range(MOST_WORKERS + 3)}
    drawn = cost_part(with_cost(shapley, {**WORKED, "timeline": many}))
    assert drawn.count('<rect class="busy"') == MOST_WORKERS
    assert "3 more are not drawn" in drawn


def test_intervals_are_drawn_over_rows_only_where_a_width_was_asked_for(shapley):
    narrowed = {"widest_by_rows": [[600, 0.8], [900, 0.4], [1200, 0.19]], "width": 0.2}
    [label] = [
        value
        for value in Page(cost_part(with_cost(shapley, WORKED, **narrowed))).values("aria-label")
        if "95 %" in value
    ]
    assert "widest goes from 0.800 to 0.190; asked goes from 0.200 to 0.200" in label
    assert "95 %" not in cost_part(with_cost(shapley, WORKED))


def test_what_is_drawn_is_not_written_out_as_well(shapley, tmp_path):
    page = Page(render(with_cost(shapley, WORKED), tmp_path, "kernel-shap-001", {}))
    assert "What it cost" in page.text
    assert "worker_seconds" in page.text
    assert "timeline" not in page.text
    assert "timeline" not in everything_made(with_cost(shapley, WORKED))
