"""Rows of later benches join the results; a figure measured again takes the place of the old one."""

import csv

import rows


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_rows_merge_by_name(own_outputs):
    rows.merge([rows.Row("a", 1.0, "s"), rows.Row("b", 2.0, "s")])
    path = rows.merge([rows.Row("a", 3.0, "s"), rows.Row("c", 4.0, "s", target="<= 5 s")])
    assert path == own_outputs.resolve() / "bench" / "results.csv"
    assert [(row["name"], row["value"]) for row in read(path)] == [("a", "3.0"), ("b", "2.0"), ("c", "4.0")]
    assert list(read(path)[0]) == ["name", "value", "unit", "baseline", "ratio", "target", "n", "spread", "conditions"]


def test_a_ratio_is_of_speeds_run_by_run():
    row = rows.rate("x", [1.0, 2.0, 1.0], 100, [10.0, 20.0, 10.0], 10, ">= 2 x", "here")
    assert row.value == 100
    assert row.baseline == 1
    assert row.ratio == 100
    assert row.spread == 0


def test_ways_are_timed_in_turns():
    order = []
    seconds = rows.in_turns(2, a=lambda: order.append("a"), b=lambda: order.append("b"))
    assert "".join(order) == "ababab"
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 2, "b": 2}
