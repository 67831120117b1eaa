"""The pure part of the benchmark: figures to rows."""

from __future__ import annotations

import json

import orjson
import pytest

from bench.__main__ import GOALS, JOBS
from bench.body import event, stamped
from bench.rows import Goal, make_row, make_rows, percentile, ratios, table


def test_the_body_is_one_kibibyte_and_differs_only_by_its_counter():
    assert len(orjson.dumps(event(100_000))) == 1024
    assert event(1) | {"counter": 2} == event(2)
    assert stamped(1, 5) == event(1) | {"sent_ns": 5}


def test_a_percentile_is_one_of_the_values():
    values = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert percentile(values, 0.5) == 3.0
    assert percentile(values, 0.0) == 1.0
    assert percentile(values, 0.99) == percentile(values, 1.0) == 5.0


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 1.1), ([1.0], -0.1)])
def test_a_percentile_of_nothing_or_outside_the_range_is_refused(values, share):
    with pytest.raises(ValueError, match="no percentile"):
        percentile(values, share)


def test_a_row_has_the_median_and_the_spread_of_its_rounds():
    row = make_row("e2e/raw", "msg/s", {0: 10.0, 1: 30.0, 2: 20.0})
    assert (row.value, row.minimum, row.maximum, row.runs) == (20.0, 10.0, 30.0, 3)


def test_ratios_are_taken_inside_a_round_and_skip_rounds_that_lack_one():
    assert ratios({0: 10.0, 1: 30.0, 3: 8.0}, {0: 5.0, 1: 10.0, 2: 1.0}) == [2.0, 3.0]


def test_the_ratio_of_a_row_is_the_median_of_ratios_and_not_the_ratio_of_medians():
    figures = {"a": ("x", {0: 1.0, 1: 4.0, 2: 9.0}), "b": ("x", {0: 1.0, 1: 8.0, 2: 3.0})}
    (row, _) = make_rows(figures, [Goal(name="a", ratio_to="b")])
    assert (row.ratio, row.ratio_minimum, row.ratio_maximum) == (1.0, 0.5, 3.0)


def test_a_name_with_several_ratios_has_a_row_for_each_pair_with_the_same_value():
    figures = {"a": ("x", {0: 6.0}), "b": ("x", {0: 2.0}), "c": ("x", {0: 3.0})}
    rows = make_rows(figures, [Goal(name="a", ratio_to="b"), Goal(name="a", ratio_to="c")])
    assert [(row.name, row.value, row.ratio_to, row.ratio) for row in rows] == [
        ("a", 6.0, "b", 3.0),
        ("a", 6.0, "c", 2.0),
        ("b", 2.0, None, None),
        ("c", 3.0, None, None),
    ]


def test_a_pair_whose_other_row_was_not_measured_leaves_the_row_without_a_ratio():
    (row,) = make_rows({"a": ("x", {0: 6.0})}, [Goal(name="a", ratio_to="absent", at_least=3.0)])
    assert (row.ratio_to, row.ratio, row.goal) == (None, None, None)


def test_the_json_of_a_row_has_the_agreed_keys():
    (row, _) = make_rows({"a": ("x", {0: 6.0}), "b": ("x", {0: 2.0})}, [Goal(name="a", ratio_to="b")])
    assert json.loads(json.dumps(row.as_json())) == {
        "name": "a",
        "value": 6.0,
        "unit": "x",
        "ratio_to": "b",
        "ratio": 3.0,
        "min": 6.0,
        "max": 6.0,
        "runs": 1,
        "ratio_min": 3.0,
        "ratio_max": 3.0,
    }


def test_the_table_says_which_goals_are_met_and_what_was_skipped():
    figures = {"a": ("x", {0: 6.0}), "b": ("x", {0: 2.0}), "memory": ("MB", {0: 200.0})}
    goals = [Goal(name="a", ratio_to="b", at_least=2.0), Goal(name="memory", at_most=150.0)]
    text = table(make_rows(figures, goals), {"peer/rabbitmq": "it is not installed"}).splitlines()
    assert text[2].endswith("met")
    assert text[4].endswith("SHORT")
    assert text[-1] == "SKIPPED peer/rabbitmq: it is not installed"


def test_every_goal_belongs_to_a_job():
    assert [goal.name for goal in GOALS if not any(job.chosen([goal.name]) for job in JOBS)] == []
