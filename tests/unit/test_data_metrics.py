"""From a worker's counters to a scraper: when they leave, what the agent takes, what it tells, and to whom."""

from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bulkhead.errors import AgentUnavailableError, ConfigError
from data_plane.config import MetricsConfig
from data_plane.inference.metrics import (
    FIRST_TOKEN_S,
    TOKEN_S,
    WHOLE_S,
    EngineCounters,
    EngineMetrics,
    Histogram,
    Timing,
)
from data_plane.rpc.metrics_server import fetch_metrics
from data_plane.session.exposition import Exposition, Observed
from data_plane.session.messages import WorkerLoad
from data_plane.session.observing import coarse, sound


def test_what_is_of_a_moment_is_coarse() -> None:
    """Of the use of memory twentieths are told, of the batch and the queue nothing."""
    counters = EngineCounters(running=1, waiting=2, produced_tokens=5)
    told = coarse(EngineMetrics(counters=counters, kv_use=0.1337))
    assert told.counters == EngineCounters(produced_tokens=5)
    assert told.kv_use == 0.15


def test_each_time_is_filed_in_its_bucket() -> None:
    """A time on a bound lies below it, one above all bounds in the last place; a single token has no time per token."""
    metrics = EngineMetrics()
    for first_s, tokens in ((0.01, 1), (1_000.0, 3)):
        timing = Timing(queued=50.0, started=50.0, first=50.0 + first_s, ended=50.0 + first_s + 1.0)
        metrics = metrics.answered(timing, prompt_tokens=4, completion_tokens=tokens, stopped=tokens == 1)
    assert metrics.first_token.counts[-1] == 1
    assert sum(metrics.first_token.counts[: FIRST_TOKEN_S.index(0.02) + 1]) == 1
    assert metrics.per_token.counts[TOKEN_S.index(0.5)] == 1
    assert (metrics.stopped, metrics.cut, metrics.prompt_tokens) == (1, 1, 8)


@pytest.mark.parametrize(
    "metrics",
    [
        EngineMetrics(first_token=Histogram((1,) * len(FIRST_TOKEN_S))),
        EngineMetrics(queue=Histogram((1,) * (len(WHOLE_S) + 1), float("nan"))),
        EngineMetrics(whole=Histogram((-1, *(1,) * len(WHOLE_S)))),
        EngineMetrics(kv_use=1.5),
        EngineMetrics(kv_use=float("nan")),
        EngineMetrics(counters=EngineCounters(busy_s=float("inf"))),
    ],
)
def test_a_snapshot_that_no_engine_makes_is_noticed(metrics: EngineMetrics) -> None:
    """The agent does not trust its worker: other bounds, and numbers that are none, are not passed on."""
    assert sound(EngineMetrics())
    assert not sound(metrics)


def observed(partition_id: str = "part_1", *, metrics: EngineMetrics | None) -> Observed:
    load = WorkerLoad(running_requests=5, queued_requests=2)
    return Observed(partition_id=partition_id, model_name="m", load=load, metrics=metrics, taken_s=123.0)


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_the_exposition_has_vllms_names_and_no_other_labels() -> None:
    """Counters, gauges and histograms under vLLM's names, by partition and model; buckets are cumulative."""
    counts = (2, 3, *(0,) * (len(FIRST_TOKEN_S) - 2), 1)
    metrics = EngineMetrics(
        counters=EngineCounters(produced_tokens=48, cached_tokens=32, queried_tokens=80, preemptions=4),
        kv_use=0.25,
        prompt_tokens=80,
        stopped=3,
        cut=2,
        first_token=Histogram(counts, 9.5),
    )
    text = Exposition(lambda: [observed(metrics=metrics), observed("part_2", metrics=None)]).render()
    found = samples(text)
    labels = (("model_name", "m"), ("partition", "part_1"))

    def value(name: str, *more: tuple[str, str]) -> float:
        return found[f"bulkhead:{name}", tuple(sorted((*labels, *more)))]

    assert value("num_requests_running") == 3
    assert value("num_requests_waiting") == 2
    assert value("generation_tokens_total") == 48
    assert value("prompt_tokens_total") == 80
    assert value("prefix_cache_hits_total") == 32
    assert value("prefix_cache_queries_total") == 80
    assert value("num_preemptions_total") == 4
    assert value("kv_cache_usage_perc") == 0.25
    assert value("request_success_total", ("finished_reason", "stop")) == 3
    assert value("request_success_total", ("finished_reason", "length")) == 2
    assert value("time_to_first_token_seconds_bucket", ("le", "0.001")) == 2
    assert value("time_to_first_token_seconds_bucket", ("le", "0.005")) == 5
    assert value("time_to_first_token_seconds_count") == 6
    assert value("time_to_first_token_seconds_sum") == 9.5
    assert value("snapshot_timestamp_seconds") == 123.0
    second = {name for name, labels in found if ("partition", "part_2") in labels}
    assert second == {"bulkhead:num_requests_running", "bulkhead:num_requests_waiting"}
    assert {name for _, labels in found for name, _ in labels} == {"partition", "model_name", "finished_reason", "le"}


def test_without_an_agent_the_command_says_so(tmp_path: Path) -> None:
    """No address, and an address at which nobody listens, are two typed errors."""
    with pytest.raises(ConfigError, match="enabled"):
        fetch_metrics(tmp_path)
    (tmp_path / "metrics.address").write_text("127.0.0.1 1")
    with pytest.raises(AgentUnavailableError):
        fetch_metrics(tmp_path)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.com", ""])  # noqa: S104  to be refused
def test_metrics_do_not_leave_the_host_unencrypted(host: str) -> None:
    """Only a loopback address can be configured."""
    assert MetricsConfig(host="::1").enabled is False
    with pytest.raises(ValueError, match=r"loopback|address"):
        replace(MetricsConfig(), host=host)
