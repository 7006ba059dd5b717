"""What Prometheus reads: every number of the engine under its name, and a dashboard that asks for nothing else."""

import asyncio
import json
import math
from pathlib import Path
import re

import httpx
from prometheus_client.parser import text_string_to_metric_families
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from gptoss_jax.engine.metrics import Metrics, Tally
from gptoss_jax.engine.requests import Piece, Request, Stats
from gptoss_jax.engine.scheduling.live import Live
from gptoss_jax.engine.scheduling.pages import Pages
from gptoss_jax.sampling.options import Sampling
from gptoss_jax.serve import metrics

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"
MODEL = 'openai/gpt-oss-20b "ours"\\\n'  # a name may hold what the form must escape


class Counted:
    """Has of `LLM` its `metrics`: of two requests of three tokens that ended, and one that was left."""

    def metrics(self) -> Metrics:
        tally = Tally(slots=4, reuse=True)
        for reason in ("stop", "length", "cancelled"):
            request = Request([1, 2, 3, 4, 5], Sampling())
            live = Live(request, 0, request.prompt, 9, 0, None, page=16, window=8)
            request.cached_tokens = 2
            tally.taken(live)
            for new, end in (([7], None), ([8, 9], reason)):
                live.tokens += new
                tally.told(live, Piece(request, new, [0.0] * len(new), [{}] * len(new), end))
        pages = Pages((0, 8), (0, 4), window_blocks=1, reuse=True)
        pages.take_full(), pages.take_full(), pages.take_ring(), pages.take_ring()
        return tally.metrics(Stats(preemptions=3), asleep=True, running=2, waiting=5, pages=[pages])


def ask(llm, accept: str = "*/*", method: str = "GET") -> httpx.Response:
    app = Starlette(routes=[Route("/metrics", metrics.endpoint(lambda: llm, MODEL))])

    async def get():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, "/metrics", headers={"accept": accept})

    return asyncio.run(get())


def samples(answer: httpx.Response) -> dict:
    """Values by name and labels other than the model's, which each has unless it is the process'."""
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("model_name", None) == (None if sample.name.startswith("process_") else MODEL)
            found[sample.name, *labels.values()] = sample.value
    return found


@pytest.mark.parametrize("accept", ["text/html,*/*", "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"])
def test_numbers_are_read_back(accept):
    answer = ask(Counted(), accept)
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = samples(answer)
    assert {name: found[f"vllm:{name}",] for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")} == {
        "num_requests_running": 2,
        "num_requests_waiting": 5,
        "kv_cache_usage_perc": 0.5,  # of the scarcer kind
    }
    assert found["gptoss_jax:asleep",] == 1
    counters = ("prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits", "num_preemptions")
    assert [found[f"vllm:{name}_total",] for name in counters] == [15, 9, 15, 6, 3]
    reasons = {"stop": 1, "length": 1, "abort": 1, "error": 0, "timeout": 0}
    assert {reason: found["vllm:request_success_total", reason] for reason in reasons} == reasons
    for name, count in {"time_to_first_token": 3, "inter_token_latency": 6, "e2e_request_latency": 2, "request_queue_time": 3}.items():
        assert found[f"vllm:{name}_seconds_count",] == count == found[f"vllm:{name}_seconds_bucket", "+Inf"]
    assert found["vllm:request_prompt_tokens_sum",] == 10 and found["vllm:request_prompt_tokens_bucket", "5.0"] == 2
    assert found["process_resident_memory_bytes",] > 0 < found["process_open_fds",]


def test_ranges_never_fall():
    found = samples(ask(Counted()))
    for name, _, _ in metrics.HISTOGRAMS:
        ranges = [(float(key[1]), value) for key, value in found.items() if key[0] == f"{name}_bucket"]
        assert ranges == sorted(ranges) and ranges[-1][0] == math.inf
        assert [n for _, n in ranges] == sorted(n for _, n in ranges)


def test_every_number_is_shown():
    """But for `requests` and the like, which follow from others."""
    shown, fields = [of for _, _, of in (*metrics.GAUGES, *metrics.COUNTERS, *metrics.HISTOGRAMS)], Metrics.__dataclass_fields__

    class Looked:
        def __init__(self):
            self.at = set()

        def __getattr__(self, name):
            self.at.add(name)
            return self

    looked = Looked()
    for of in shown:
        of(looked)
    assert looked.at == fields.keys() - {"finished"} | {"cache_usage"}


def test_nothing_is_counted_until_it_is_asked_for_and_servers_know_nothing_of_each_other():
    def broken():
        raise AssertionError("nobody asked")

    metrics.registry(broken, "a")
    assert metrics.registry(Counted, "a").get_sample_value("vllm:num_requests_running", {"model_name": "a"}) == 2
    assert metrics.registry(Counted, "b").get_sample_value("vllm:num_requests_running", {"model_name": "a"}) is None


def test_before_there_is_a_model_only_the_process_has_numbers():
    answer = ask(None)
    assert answer.status_code == 200 and {name.partition("_")[0] for name, *_ in samples(answer)} == {"process"}


def test_the_dashboard_asks_for_what_there_is():
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    exposed = {name for name, *_ in samples(ask(Counted()))}
    questions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    variable = [one["query"]["query"] if isinstance(one["query"], dict) else one["query"] for one in board["templating"]["list"]]
    asked = {name for text in (*questions, *variable) for name in re.findall(r"\b(?:vllm|gptoss_jax|process)[:_]\w+", text)}
    assert asked and asked <= exposed
    assert len(questions) >= 12 and all("$model" in text or "process_" in text for text in questions)
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places) and len({panel["id"] for panel in board["panels"]}) == len(places)
    assert all(text.count("(") == text.count(")") and text.count("{") == text.count("}") for text in questions)
