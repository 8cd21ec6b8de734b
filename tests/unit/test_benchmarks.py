"""The pure parts of the benchmarks: what they compute, and what they print."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID

import pytest
import token_check
from aiohttp import web
from aiohttp.test_utils import TestServer
from api import AIM, BARELY, DONE, QUEUED, SUBMIT, last_jobs_figures, rate_figures, token_figures
from api import OURS as OUR_API
from engine import HIT, KEPT, MISS, PEFT, RELOAD
from engine import figures as engine_figures
from fairness import FIRST_USER, NEWCOMERS_BACKLOG, Turn, longest_pause, waits
from http_load import body_length, rate, request_bytes
from overhead import WARM_UP, gaps_ms, steady_rate
from queue_rounds import Samples, in_turns, keep
from queue_speed import figures, installed
from queue_systems import OURS, SYSTEMS, Procrastinate
from report import Figure, Spread, percentile, publish

import plugins
from tenkaigen_worker.errors import TenkaigenError


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


def test_the_longest_pause_lasts_to_the_end_where_jobs_are_left() -> None:
    own, other = Turn(FIRST_USER, 3), Turn(UUID(int=2), 5)
    all_ran = [own, other, other, *[own] * (NEWCOMERS_BACKLOG - 1), *[other] * 9]

    assert longest_pause(all_ran) == 3
    assert longest_pause([own, other, other, own, *[other] * 9]) == 10
    assert waits([own, other, own], first_user=True) == [3, 3]
    assert waits([own, other, own], first_user=False) == [5]


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


def judged(samples: Samples) -> dict[str, bool | None]:
    return {figure.name: figure.met for figure in figures(samples)}


PEERS = {"procrastinate": [3.0, 3.1], "pgqueuer": [2.0, 2.1], "bare asyncpg": [0.5, 0.5]}


@pytest.mark.parametrize(("ours", "met"), [([1.9, 1.8], True), ([2.5, 2.6], False), ([9.0, 9.1], False)])
def test_a_queue_is_ahead_when_it_is_faster_than_every_peer(ours: list[float], met: bool) -> None:
    samples = Samples(insert_to_claim={"tenkaigen": ours, **PEERS}, claim_large={})

    assert judged(samples) == {
        "INSERT to claim, idle worker: tenkaigen": met,
        "INSERT to claim, idle worker: procrastinate": None,
        "INSERT to claim, idle worker: pgqueuer": None,
        "INSERT to claim, idle worker: bare asyncpg": None,
    }


def test_nobody_is_ahead_of_a_peer_that_is_not_installed() -> None:
    samples = Samples(insert_to_claim={"tenkaigen": [1.0], "pgqueuer": [2.0]})

    assert judged(samples)["INSERT to claim, idle worker: tenkaigen"] is None


@pytest.mark.parametrize(("large", "met"), [([0.3, 0.9], True), ([0.3, 1.2], False)])
def test_a_claim_on_the_large_table_is_compared_with_the_small_one_of_its_round(large: list[float], met: bool) -> None:
    samples = Samples(claim_small={1: {"tenkaigen": [0.2, 0.6]}}, claim_large={1: {"tenkaigen": large}})

    assert judged(samples)["claim, large / small: tenkaigen"] is met


@pytest.mark.parametrize(("hit", "met"), [([1.0, 3.0, 1.0], True), ([2.0, 3.0, 9.0], False)])
def test_what_the_engine_saves_is_compared_with_its_baseline_of_the_same_round(hit: list[float], met: bool) -> None:
    lines = engine_figures({MISS: [2.0, 2.0, 4.0], HIT: hit, PEFT: [30.0], RELOAD: [20.0]})

    assert {line.name: line.met for line in lines} == {MISS: None, HIT: met, PEFT: None, RELOAD: None}
    assert lines[2].measured == f"30.00 (30.00 to 30.00) ms = 1.500 x {RELOAD}"
    assert engine_figures({KEPT: [1.0]})[0].met is None


async def test_takes_turns_and_keeps_the_median_of_each_round() -> None:
    order: list[str] = []

    async def call(name: str, value: float) -> float:
        order.append(name)
        return value + len(order)

    samples = Samples()
    keep(samples.heartbeat, await in_turns(3, {"a": lambda: call("a", 0), "b": lambda: call("b", 100)}))

    assert [set(order[turn : turn + 2]) for turn in (0, 2, 4)] == [{"a", "b"}] * 3
    assert samples.heartbeat["a"][0] in {3, 4}
    assert samples.heartbeat["b"][0] in {103, 104}


def test_says_how_to_install_a_queue_that_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Procrastinate, "package", "there_is_no_such_package")

    assert OURS in installed(SYSTEMS)
    assert "procrastinate" not in {system.name for system in installed(SYSTEMS)}
    said = capsys.readouterr().err
    assert "procrastinate" in said
    assert "pip install -c config/constraints.txt -e '.[bench]'" in said


async def test_the_plugin_layer_is_measured_as_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "WARM_UP", 1)

    loaded = plugins.load(tmp_path)
    times = await plugins.measure(loaded, 2, pause_seconds=0)

    assert len(loaded.styles) == 100
    assert sum(bool(plugin.hooks) for plugin in loaded.describe() if plugin.origin != "built-in") == 20
    assert {len(measured) for measured in times.values()} == {2}
    assert max(times["the prompt"]) < max(times["all of it"])


@pytest.mark.parametrize(("ours", "met"), [([70.0, 160.0], True), ([65.0, 140.0], False)])
def test_the_api_is_compared_with_the_bare_server_of_its_round(ours: list[float], met: bool) -> None:
    lines = rate_figures({kind: {OUR_API: ours, BARELY: [100.0, 200.0]} for kind in (DONE, SUBMIT, QUEUED)})

    assert [line.met for line in lines if line.name.endswith(": share")] == [met, met, None]
    assert lines[1].measured == "150 (100 to 200) /s"
    assert lines[2].aim == f"at least {AIM:g}"


async def test_each_kind_of_token_is_read_in_every_round_that_counts() -> None:
    read = await token_check.measure(rounds=2, calls=1)

    assert {name: len(values) for name, values in read.items()} == {"ES256": 2, "HS256": 2}
    assert token_figures({"ES256": [0.25, 0.75]})[0].measured == "0.50 (0.25 to 0.75) ms"


def test_what_policies_cost_has_no_aim() -> None:
    lines = last_jobs_figures({"as the user": [1.5, 2.5]}, rows=300_000)

    assert [(line.name, line.measured, line.met) for line in lines] == [
        ("last 20 jobs of 300,000, as the user", "2.00 (1.50 to 2.50) ms", None),
    ]


async def test_a_server_is_asked_as_often_as_told_and_its_refusals_are_said() -> None:
    asked: list[bytes] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(await request.read())
        return web.json_response({"wrong": "size"}, status=202 if request.path == "/a" else 400)

    app = web.Application()
    app.router.add_route("*", "/{path}", answer)
    async with TestServer(app) as server:
        url = str(server.make_url("")).rstrip("/")
        assert await rate(url, request_bytes("POST", f"{url}/a", b'{"n": 1}'), 202, connections=2, requests=10) > 0
        with pytest.raises(TenkaigenError, match=r'400 Bad Request: \{"wrong": "size"\}'):
            await rate(url, request_bytes("GET", f"{url}/b"), 202, connections=1, requests=1)

    assert asked == [b'{"n": 1}'] * 10 + [b""]


def test_the_length_of_an_answer_is_read_whatever_its_case() -> None:
    assert body_length(b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\nServer: x\r\n\r\n") == 17
