"""GET /metrics: what `llm.metrics()` says, as Prometheus reads it. Knows the engine's numbers and no request.

Where a number means what vLLM's of that name does, it has vLLM's name, so that dashboards and alarms made for one show the other;
the rest are named `gptoss_jax:...`. Every sample has the label `model_name`. Whatever form is asked for, it is the text that every
Prometheus reads: in OpenMetrics' prometheus-client 0.26 writes `vllm_...` for `vllm:...`, and no dashboard would find it.
"""

from collections.abc import Callable, Iterator
import itertools
from typing import Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from gptoss_jax.engine.metrics import Histogram, Metrics

GAUGES: tuple[tuple[str, str, Callable[[Metrics], float]], ...] = (
    ("vllm:num_requests_running", "Requests that have a slot.", lambda now: now.running),
    ("vllm:num_requests_waiting", "Requests that have none yet.", lambda now: now.waiting),
    ("vllm:kv_cache_usage_perc", "Share of the cache's pages that requests have, 1 is all of them.", lambda now: now.cache_usage),
    ("gptoss_jax:slots", "Most requests that run side by side.", lambda now: now.slots),
    ("gptoss_jax:asleep", "1 while the model sleeps and answers nothing, 0 while it is awake.", lambda now: now.asleep),
    ("gptoss_jax:full_pages", "Pages of the cache for full layers.", lambda now: now.full_pages),
    ("gptoss_jax:full_pages_used", "Those of them that requests have.", lambda now: now.full_pages_used),
    ("gptoss_jax:ring_pages", "Pages of the cache for sliding layers.", lambda now: now.ring_pages),
    ("gptoss_jax:ring_pages_used", "Those of them that requests have.", lambda now: now.ring_pages_used),
)
COUNTERS: tuple[tuple[str, str, Callable[[Metrics], int]], ...] = (
    ("vllm:prompt_tokens", "Tokens of prompts that were read or found in kept prefixes.", lambda now: now.prompt_tokens),
    ("vllm:generation_tokens", "Tokens that were drawn.", lambda now: now.generation_tokens),
    ("vllm:prefix_cache_queries", "Tokens of prompts that kept prefixes were looked through for.", lambda now: now.prefix_queries),
    ("vllm:prefix_cache_hits", "Those of them that were found.", lambda now: now.prefix_hits),
    ("vllm:num_preemptions", "Times that a request lost its pages and had to be read again.", lambda now: now.preemptions),
    ("gptoss_jax:failures", "Times that a dispatch failed and the engine began anew.", lambda now: now.failures),
)
HISTOGRAMS: tuple[tuple[str, str, Callable[[Metrics], Histogram]], ...] = (
    ("vllm:request_queue_time_seconds", "From when it is asked for until it is taken up.", lambda now: now.queue_seconds),
    ("vllm:request_prefill_time_seconds", "From then to its first token.", lambda now: now.prefill_seconds),
    ("vllm:time_to_first_token_seconds", "From when it is asked for to its first token.", lambda now: now.first_token_seconds),
    ("vllm:inter_token_latency_seconds", "From one token to the next.", lambda now: now.between_tokens_seconds),
    ("vllm:request_decode_time_seconds", "From its first token to its last.", lambda now: now.decode_seconds),
    ("vllm:e2e_request_latency_seconds", "From when it is asked for to its end.", lambda now: now.request_seconds),
    ("vllm:request_prompt_tokens", "Tokens of its prompt.", lambda now: now.prompt_lengths),
    ("vllm:request_generation_tokens", "Tokens of its answer.", lambda now: now.generation_lengths),
)
FINISHED = "vllm:request_success"
KIND = "text/plain; version=0.0.4; charset=utf-8"
REASONS = {"cancelled": "abort"}  # where vLLM has another word; "timeout" is ours alone


class HasMetrics(Protocol):
    def metrics(self) -> Metrics: ...


class Numbers(Collector):
    """An LLM's numbers under their names.

    Args:
      found: gives an `LLM`, or whatever has its `metrics`; None while there is none yet, of which there are no numbers.
      model: what clients call it.
    """

    def __init__(self, found: Callable[[], HasMetrics | None], model: str):
        self._found, self._model = found, model

    def describe(self) -> list[Metric]:
        """So that nothing is looked at before it is asked for."""
        return []

    def collect(self) -> Iterator[Metric]:
        llm = self._found()
        if llm is None:
            return
        now, labels, values = llm.metrics(), ["model_name"], [self._model]
        for name, says, of in GAUGES:
            gauge = GaugeMetricFamily(name, says, labels=labels)
            gauge.add_metric(values, of(now))
            yield gauge
        for name, says, of in COUNTERS:
            counter = CounterMetricFamily(name, says, labels=labels)
            counter.add_metric(values, of(now))
            yield counter
        ended = CounterMetricFamily(FINISHED, "Requests that ended, by reason.", labels=[*labels, "finished_reason"])
        for reason, count in now.finished.items():
            ended.add_metric([*values, REASONS.get(reason, reason)], count)
        yield ended
        for name, says, of in HISTOGRAMS:
            histogram = HistogramMetricFamily(name, says, labels=labels)
            histogram.add_metric(values, _ranges(of(now)), of(now).sum)
            yield histogram


def registry(found: Callable[[], HasMetrics | None], model: str) -> CollectorRegistry:
    """One of its own for each server: an LLM's numbers, and those of the process that are Prometheus' custom: memory, files, seconds."""
    known = CollectorRegistry()
    known.register(Numbers(found, model))
    ProcessCollector(registry=known)
    return known


def endpoint(found: Callable[[], HasMetrics | None], model: str) -> Callable:
    """What answers GET /metrics; see `Numbers`."""
    known = registry(found, model)

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(known), headers={"content-type": KIND, "cache-control": "no-store"})

    return metrics


def _ranges(histogram: Histogram) -> list[tuple[str, int]]:
    """Upper bounds and how many values lie below each, as Prometheus counts them."""
    bounds = [*(str(bound) for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, itertools.accumulate(histogram.counts), strict=True))
