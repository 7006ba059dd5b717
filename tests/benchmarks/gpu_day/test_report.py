"""What the pieces of a GPU's day found, as figures, tables, rows for the tuning tables, shares of a profile."""

import dataclasses

import pytest

from benchmarks.gpu_day import profile, report, serving
from pallas_kernels.predict import table


def test_figures_are_those_of_vllms_benchmark():
    rounds = [[[0.5, 0.6, 0.7], [1.0, 1.4, 1.8]], [[0.5, 0.5, 0.9], [2.0, 2.2, 2.4]]]
    found = serving.figures(rounds, [2.0, 3.0], 10)
    assert (found["requests"], found["seconds"], found["requests_per_second"]) == (4, 5.0, 0.8)
    assert (found["output_tokens_per_second"], found["total_tokens_per_second"]) == (12 / 5, 52 / 5)
    assert found["p50_ttft_ms"] == pytest.approx(750) and found["mean_ttft_ms"] == pytest.approx(1000)
    assert found["p50_tpot_ms"] == pytest.approx(200) and found["p99_tpot_ms"] == pytest.approx(400, rel=0.02)


def test_rows_for_the_tuning_tables():
    line = {
        "op": "projection.out",
        "name": "20b, 16 tokens",
        "seconds": 60e-6,
        "device": "NVIDIA H200",
        "jax": "0.11.2",
        "date": "2026-12-01",
    }
    grouped = line | {"op": "moe.grouped", "name": "20b, 64 tokens", "seconds": 5e-5}
    text = report.tuning_rows([line, line | {"op": "moe.down", "seconds": 1e-5}, grouped, {"op": "moe.down", "failed": "x"}])
    rows = text.split("\n")
    assert rows[0] == "# projection/tuning.py, projection.out: 20b, 16 tokens" and len(rows) == 6
    assert "microseconds=10.0, device='NVIDIA H200', jax='0.11.2', date='2026-12-01'" in rows[1], "of one of six layers"
    assert "most_rows=16" in rows[1] and "most_rows=16" in rows[3] and "most_pairs=8" in rows[5]


def test_tables_have_what_was_found():
    lines = [
        {"op": "moe.down", "name": "20b, 1 token", "error": 0.0012, "floor": 5e-6, "predicted": 6e-6, "seconds": 7.5e-6},
        {"op": "moe.up", "name": "20b, 1 token", "failed": "a | b"},
        {"benchmark": "decode", "preset": "20b", "batch": 1, "context": 9, "tokens_per_second": 1234.5, "without": ""},
        {"benchmark": "decode", "preset": "20b", "batch": 1, "context": 9, "refused": "WRONG: x", "without": "route"},
        {"kernel": "route", "preset": "20b", "verdict": "hung", "why": "w", "seconds": 3.0, "cases": {}},
    ]
    text = report.tables(lines)
    assert "| moe.down | 20b, 1 token | 0.0012 | 5.0 | 6.0 | 7.5 | 1.50 |" in text and "FAILED: a \\| b" in text
    assert "| 20b | kernels | 1 | 9 | 1,234.5 |  |" in text and "| 20b | kernels without route | 1 | 9 |  | WRONG: x |" in text
    assert "| route | 20b | hung | 0 | 3.0 | w |" in text and "vllm" not in text


def test_what_was_predicted_stands_beside():
    row = table.Row("moe.down", "20b, 1 token", "h200", "moe_down", 2, 3e-6, 2e-6, "memory", table.source("moe.down"))
    stale = dataclasses.replace(row, op="moe.gate_up", source="other")
    line = {"op": "moe.down", "name": "20b, 1 token", "device": "NVIDIA H200", "seconds": 7e-6}
    step = {"benchmark": "decode", "preset": "gpt-oss-20b", "batch": 1, "context": 1024, "device": "NVIDIA H200"}
    lines = [line, line | {"op": "moe.gate_up"}, line | {"device": "NVIDIA H100 80GB HBM3"}, step, step | {"device": "cpu"}]
    made = report.with_predictions(lines, [row, stale])
    assert made == [line | {"predicted": 6e-6}, *lines[1:]], "of the same kernels, on the same GPU"
    ops = ["projection.qkv", "projection.out", "projection.unembed", "routing.route", "moe.gate_up", "moe.down", "norm.add_norm"]
    whole = [dataclasses.replace(row, op=op, launches=1, source=table.source(op)) for op in ops]
    for case in ("20b, batch 1, 1k context", "20b, batch 1, 8k context, window 128"):
        whole.append(dataclasses.replace(whole[0], op="attention.decode", case=case, source=table.source("attention.decode")))
    assert report.with_predictions([step], whole)[0]["predicted_milliseconds"] > 169 * 3e-3
    assert report.with_predictions([step | {"without": "route"}], whole) == [step | {"without": "route"}]


class Spans:
    """A plane, line or event of a profile."""

    def __init__(self, name, inside=(), duration_ns=0):
        self.name, self.lines, self.events, self.duration_ns = name, list(inside), list(inside), duration_ns


def test_shares_of_a_step():
    stream = Spans(
        "Stream #1", [Spans("moe_down_1", duration_ns=300), Spans("moe_down_2", duration_ns=100), Spans("route", duration_ns=100)]
    )
    found = profile.shares([Spans("/host:CPU", [Spans("tf_XLA", [Spans("x", duration_ns=9)])]), Spans("/device:GPU:0", [stream])])
    assert found[0] == {"kernel": "moe_down", "launches": 2, "microseconds": 0.2, "share": 0.8} and len(found) == 2
