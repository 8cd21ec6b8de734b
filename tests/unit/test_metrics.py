"""Numbers: what a scrape of ``/metrics`` reads."""

from __future__ import annotations

from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from tenkaigen_worker.errors import Code
from tenkaigen_worker.jobs import QueueDepth, Status
from tenkaigen_worker.metrics import Metrics


def samples_of(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_outcomes_and_pictures() -> None:
    metrics = Metrics()
    metrics.job_finished(Status.COMPLETED, None, {}, pictures=4)
    metrics.job_finished(Status.FAILED, Code.TOO_LARGE, {}, pictures=0)
    metrics.job_finished(Status.FAILED, Code.TOO_LARGE, {}, pictures=0)

    samples = samples_of(metrics)
    name = "tenkaigen_jobs_finished_total"
    assert samples[name, frozenset({("status", "completed"), ("error_code", "")})] == 1
    assert samples[name, frozenset({("status", "failed"), ("error_code", "too_large")})] == 2
    assert samples["tenkaigen_pictures_total", frozenset()] == 4


def test_stages_in_seconds_and_only_the_four() -> None:
    metrics = Metrics()
    timings = {"prepare": 10, "wait": 20, "generate": 5_000, "denoise": 4_000, "publish": 250}
    metrics.job_finished(Status.COMPLETED, None, timings, pictures=1)

    samples = samples_of(metrics)
    sums = {
        dict(labels)["stage"]: value for (name, labels), value in samples.items() if name.endswith("_sum") and labels
    }
    assert sums == {"prepare": 0.01, "wait": 0.02, "generate": 5, "publish": 0.25}


def test_gauges() -> None:
    metrics = Metrics()
    metrics.queue_depth(QueueDepth(queued=12, processing=3, oldest_seconds=7.5))
    metrics.jobs_held(2)
    metrics.engine_up(True)
    metrics.engine_gap(0.004)

    samples = {name: value for (name, labels), value in samples_of(metrics).items() if not labels}
    assert samples["tenkaigen_queue_queued_jobs"] == 12
    assert samples["tenkaigen_queue_processing_jobs"] == 3
    assert samples["tenkaigen_queue_oldest_seconds"] == 7.5
    assert samples["tenkaigen_jobs_held"] == 2
    assert samples["tenkaigen_engine_up"] == 1
    assert samples["tenkaigen_engine_gap_seconds_sum"] == 0.004


def test_every_name_is_ours_and_the_global_registry_is_left_alone() -> None:
    first, second = Metrics(), Metrics()
    first.jobs_held(5)

    assert all(name.startswith("tenkaigen_") for name, _ in samples_of(first))
    assert samples_of(second)["tenkaigen_jobs_held", frozenset()] == 0
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("tenkaigen")]


def test_content_type_is_for_a_header() -> None:
    assert Metrics.content_type.startswith("text/plain; version=")
