"""The whole decode step, compiled for Hopper GPUs that are not there: launches, memory, no copies, what they tell each other."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import gptoss_jax as gj
from gptoss_jax.engine.device import decode
from gptoss_jax.engine.sizes import STEPS, sizes
from gptoss_jax.model.cache import init_cache
from gptoss_jax.model.params import abstract_params, is_spec, param_bytes
from gptoss_jax.model.transformer import decode_step
from gptoss_jax.plan import abstract
from gptoss_jax.plan.setting import Setting
from pallas_kernels import aot
from pallas_kernels.aot.collectives import collectives

pytestmark = pytest.mark.thorough

CONTEXT, CHUNK = 8192, 2048
A_LAYER = 8


def compiled(config, batch):
    """The step of a whole model, and the bytes of its cache's pages."""
    specs = abstract_params(config, experts="tiled")
    params = jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, spec.dtype), specs, is_leaf=is_spec)
    cache = jax.eval_shape(lambda: init_cache(config, batch, CONTEXT, chunk=CHUNK))
    tokens, active = jax.ShapeDtypeStruct((batch,), jnp.int32), jax.ShapeDtypeStruct((batch,), jnp.bool_)
    step = lambda params, cache, tokens, active: decode_step(params, config, cache, tokens, active=active)
    pages = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((cache.k, cache.v)))
    return aot.compile(step, params, cache, tokens, active, donate_argnums=(1,)), pages


@pytest.mark.skipif(aot.unavailable() is not None, reason=str(aot.unavailable()))
@pytest.mark.parametrize(
    "config, batch",
    [
        pytest.param(gj.GPT_OSS_20B, 1, id="20b-1"),
        pytest.param(gj.GPT_OSS_20B, 16, id="20b-16", marks=pytest.mark.slow),
        pytest.param(gj.GPT_OSS_120B, 1, id="120b-1", marks=pytest.mark.slow),
        pytest.param(gj.GPT_OSS_120B, 16, id="120b-16", marks=pytest.mark.slow),
    ],
)
def test_a_decode_step_is_few_launches(config, batch):
    report, pages = compiled(config, batch)
    begins = [i for i, name in enumerate(report.launches) if name == "project_qkv"]  # a layer's first launch
    assert len(begins) == config.num_hidden_layers
    assert max(b - a for a, b in zip(begins, begins[1:], strict=False)) <= A_LAYER, report.launches
    assert len(report.launches) <= A_LAYER * config.num_hidden_layers + 24, report.launches
    assert report.alias_bytes >= pages, "the cache is written in place"
    assert report.temporary_bytes < 300e6 and report.temporary_bytes < pages / 8, "and neither it nor weights are copied"
    for kernel in report.kernels:
        assert (kernel.spill_bytes, kernel.stack_bytes) == (0, 0), kernel.name


@pytest.mark.skipif(aot.unavailable() is not None, reason=str(aot.unavailable()))
@pytest.mark.parametrize("gpus", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("experts", [pytest.param(7, marks=pytest.mark.slow), 29, pytest.param(96, marks=pytest.mark.slow)])
def test_any_count_of_experts_takes_the_kernels(experts, gpus):
    """Of pruned models; on a mesh every device has its part of each expert."""
    config = dataclasses.replace(gj.GPT_OSS_20B, num_hidden_layers=2, layer_types=gj.GPT_OSS_20B.layer_types[:2], num_local_experts=experts)
    partition = Setting(config, "h200", gpus).partition
    mesh = aot.mesh("h200") if partition is None else partition.mesh
    params, own = abstract.weights(config, "tiled", partition), sizes(config, slots=2, context=CONTEXT, chunk=CHUNK)
    state, orders = abstract.state(config, own, partition), abstract.orders(config, own, partition)
    keywords = {"steps": STEPS, "top_logprobs": 20}
    report = aot.compile(decode.decode_chunk, params, config, state, orders, mesh=mesh, keywords=keywords, xla_kernels=False)
    for name in ("route", "moe_gate_up", "moe_down"):
        assert sum(launch.endswith(f" body / {name}") for launch in report.launches) == config.num_hidden_layers, report.launches
    for kernel in report.kernels:
        assert (kernel.spill_bytes, kernel.stack_bytes) == (0, 0), kernel.name


@pytest.mark.skipif(aot.unavailable() is not None, reason=str(aot.unavailable()))
@pytest.mark.slow  # test_plan compiles a few of its layers for four GPUs
@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
def test_gpus_share_a_decode_step(gpus):
    """Of gpt-oss-120b, as the engine runs it, sampling included."""
    config, slots = gj.GPT_OSS_120B, 16
    partition = Setting(config, "h100", gpus).partition
    mesh = aot.mesh("h100") if partition is None else partition.mesh
    params = abstract.weights(config, "tiled", partition)
    own = sizes(config, slots=slots, context=CONTEXT, chunk=CHUNK)
    state, orders = abstract.state(config, own, partition), abstract.orders(config, own, partition)
    keywords = {"steps": STEPS, "top_logprobs": 20}
    report = aot.compile(decode.decode_chunk, params, config, state, orders, mesh=mesh, keywords=keywords, xla_kernels=False)

    told, residual = collectives(report.hlo), slots * config.hidden_size
    layers = [one for one in told if "layers." in one.op_name]
    assert {one.kind for one in layers} <= {"all-reduce"} and len(layers) == (2 * config.num_hidden_layers if gpus > 1 else 0)
    assert all(one.loop and one.elements <= residual and one.bytes <= 4 * residual for one in told), told
    predicted = param_bytes(config, experts="tiled", partition=partition) + abstract.device_bytes((state, orders))
    assert report.argument_bytes == pytest.approx(predicted, rel=0.03)
    assert report.alias_bytes >= abstract.device_bytes(state) and report.temporary_bytes < 300e6
    begins = [name for name in report.launches if name.endswith(" body / project_qkv")]
    assert len(begins) == config.num_hidden_layers
    for kernel in report.kernels:
        assert (kernel.spill_bytes, kernel.stack_bytes) == (0, 0), kernel.name
