"""The pure parts of the benchmarks: what they compute, and what they print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from overhead import WARM_UP, gaps_ms, steady_rate
from report import Figure, Spread, percentile, publish


def test_a_spread_is_the_median_and_the_extremes() -> None:
    spread = Spread.of([0.9, 1.25, 1.0])

    assert spread == Spread(1.0, 0.9, 1.25)
    assert spread.text(2) == "1.00 (0.90 to 1.25)"


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (25, 1), (50, 2), (51, 3), (95, 4), (100, 4)])
def test_a_percentile_is_one_of_the_values(percent: float, value: float) -> None:
    assert percentile([3, 1, 4, 2], percent) == value


def test_there_is_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_the_rate_begins_after_the_warm_up() -> None:
    warm_up = [float(number * 10) for number in range(WARM_UP)]
    steady = [warm_up[-1] + 0.5 * number for number in range(1, 7)]

    assert steady_rate([*warm_up, *steady]) == pytest.approx(2)


def test_a_gap_is_what_the_engine_did_not_work_between_two_jobs() -> None:
    timings = [
        {"encode": 10, "denoise": 300, "decode": 186, "publish": 50, "wait": 400},
        {"encode": 10, "denoise": 400, "decode": 90},
        {"encode": 10, "denoise": 400, "decode": 90},
    ]

    assert gaps_ms([5.0, 5.5, 6.012], timings) == pytest.approx([4, 12])


def test_publishes_a_table_and_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    figures = [Figure("ratio", "0.98", "at least 0.97", met=True), Figure("gap", "12 ms", "under 10 ms", met=False)]

    publish("What it costs", figures, {"samples": [1, 2]}, file)

    printed = capsys.readouterr().out
    assert "What it costs" in printed
    assert "met" in printed
    assert "missed" in printed
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["figures"][0] == {"name": "ratio", "measured": "0.98", "aim": "at least 0.97", "met": True}
    assert document["samples"] == [1, 2]
    assert document["machine"]["cores"] >= 1
