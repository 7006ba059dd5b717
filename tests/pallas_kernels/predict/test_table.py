"""The predictions that were written down: they are of the kernels that there are, or they are not shown."""

import dataclasses
import re

import pytest

from pallas_kernels import bench
from pallas_kernels.predict import chip, step, table

ROW = table.Row("moe.down", "20b, 1 token", "h200", "moe_down", 2, 5e-6, 4e-6, "memory", "")


def row(**changes) -> table.Row:
    return dataclasses.replace(ROW, source=table.source("moe.down"), **changes)


def test_rows_come_back_and_take_the_places_of_older_ones(tmp_path):
    path = tmp_path / "predicted.json"
    assert table.read(path) == []
    table.write([row(), row(gpu="h100")], path)
    table.write([row(seconds=6e-6), row(seconds=1e-6, kernel="other")], path)
    assert [(r.gpu, r.seconds) for r in table.read(path)] == [("h100", 5e-6), ("h200", 6e-6), ("h200", 1e-6)]


def test_what_a_case_takes_is_all_its_launches():
    rows = [row(), row(kernel="other", launches=1, seconds=1e-6), row(gpu="h100", seconds=1.0)]
    assert table.seconds("moe.down", "20b, 1 token", "h200", rows) == pytest.approx(11e-6)
    assert (
        table.seconds("moe.down", "20b, 4 tokens", "h200", rows) is None and table.seconds("moe.down", "20b, 1 token", None, rows) is None
    )


def test_a_prediction_of_another_kernel_is_not_shown(monkeypatch, tmp_path):
    assert not table.stale([row()]) and table.stale([dataclasses.replace(row(), source="0")])
    package = tmp_path / "pallas_kernels"
    for name in ("moe/mosaic.py", "moe/reference.py", "primitives.py", "predict/clock.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("")
    monkeypatch.setattr(table, "PACKAGE", package)
    monkeypatch.setattr(table, "_MODEL", ("clock",))
    seen = []
    for name in ("", "moe/reference.py", "moe/mosaic.py", "primitives.py", "predict/clock.py"):
        if name:
            (package / name).write_text("x = 1")
        table.source.cache_clear()
        seen.append(table.source("moe.down"))
    table.source.cache_clear()
    assert seen[0] == seen[1] and len(set(seen[1:])) == 4, "a reference changes no kernel; a kernel and the model of time do"


def test_what_is_written_down_is_of_cases_that_there_are():
    cases = {(case.op, case.name) for case in bench.cases()}
    rows = table.read()
    assert rows and {(r.op, r.case) for r in rows} <= cases and {r.gpu for r in rows} <= chip.CHIPS.keys()
    assert all(r.seconds > r.floor > 0 and r.launches > 0 and re.fullmatch("[0-9a-f]{12}", r.source) for r in rows)


@pytest.mark.thorough
def test_nothing_that_is_written_down_is_stale():
    stale = table.stale(table.read())
    assert not stale, f"python -m pallas_kernels.predict --write: {len(stale)} predictions are of kernels that have changed"


@pytest.mark.parametrize("model", step.LAYERS)
@pytest.mark.parametrize("batch", [1, 16])
def test_a_step_is_the_sum_of_its_launches(model, batch, gpu="h200"):
    found = step.step(table.read(), model, batch, gpu)
    assert found.seconds == pytest.approx(sum(s for s, _ in found.parts.values())) and found.ratio > 1
    layers = step.LAYERS[model]
    assert found.seconds > layers * 8 * chip.CHIPS[gpu].launch * chip.CHIPS[gpu].turn


def test_a_step_that_lacks_a_launch_is_refused():
    with pytest.raises(ValueError, match="project_qkv, .*unembed of 20b at batch 1 on h200 are not; .* --write --gpu=h200 predicts them"):
        step.step([], "20b", 1, "h200")


@pytest.mark.parametrize(
    "kind, gpu", [("NVIDIA H200", "h200"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA GH200 480GB", None), ("cpu", None)]
)
def test_names_of_devices(kind, gpu):
    assert table.gpu_of(kind) == gpu
