"""Which implementation runs where: by name, by device, and a kernel's place in a program."""

from concurrent.futures import ThreadPoolExecutor
import functools
import logging

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import dispatch, hopper
from pallas_kernels.attention import paged_attention
from pallas_kernels.norm import add_norm

ROWS = jax.ShapeDtypeStruct((2, 192), jnp.float32)
TERMS = jax.ShapeDtypeStruct((3, 2, 192), jnp.float32)
VALID = jax.ShapeDtypeStruct((2,), jnp.bool_)
GAIN = jax.ShapeDtypeStruct((192,), jnp.float32)


def on(kind, platform="gpu"):
    """As if programs that are traced within ran on a device of this kind."""
    device = jax.sharding.AbstractDevice(device_kind=kind, platform=platform, num_cores=hopper.MULTIPROCESSORS)
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


def kernels(program, platform="cuda") -> int:
    """Mosaic kernels in a program that is lowered for a platform."""
    return jax.jit(program).trace(ROWS, TERMS, VALID, GAIN).lower(lowering_platforms=(platform,)).as_text().count("mosaic_gpu_v2")


@pytest.mark.parametrize("kind", ["NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA H800", "NVIDIA H20", "NVIDIA GH200 480GB"])
def test_hoppers_get_kernels(kind):
    with on(kind):
        assert dispatch.for_hopper() and kernels(add_norm) == 1
        assert kernels(functools.partial(add_norm, implementation="xla")) == 0


@pytest.mark.parametrize("kind", ["NVIDIA A100-SXM4-80GB", "NVIDIA B200", "NVIDIA GeForce RTX 4090"])
def test_other_gpus_get_xla_and_a_sentence(kind, caplog):
    dispatch._log_unused.cache_clear()
    with caplog.at_level(logging.WARNING), on(kind):
        assert kernels(add_norm) == kernels(add_norm) == 0
    (record,) = caplog.records
    assert record.getMessage() == f"On {kind} XLA's forms run: the Pallas kernels are written for Hopper GPUs (H100, H200)."


def test_another_jax_gets_xla_and_a_sentence(caplog, monkeypatch):
    monkeypatch.setattr(jax, "__version__", "0.13.0")
    monkeypatch.setattr(jax, "__version_info__", (0, 13, 0))
    dispatch._log_unused.cache_clear()
    with caplog.at_level(logging.WARNING), on("NVIDIA H200"):
        assert not dispatch.for_hopper() and kernels(functools.partial(add_norm)) == 0  # a function that was not traced before
        with pytest.raises(NotImplementedError, match="written for jax 0.11.2 to 0.12, this is jax 0.13.0; pass None or 'xla'"):
            kernels(functools.partial(add_norm, implementation="mosaic"))
    assert [r.getMessage() for r in caplog.records] == [
        "On NVIDIA H200 XLA's forms run: the Pallas kernels are written for jax 0.11.2 to 0.12, this is jax 0.13.0."
    ]


@pytest.mark.parametrize("kind, platform", [("TPU v5 lite", "tpu"), ("cpu", "cpu"), ("AMD Instinct MI300X", "gpu")])
def test_other_devices_get_xla(kind, platform, caplog):
    with on(kind, platform):
        assert not dispatch.for_hopper() and kernels(add_norm, platform if platform != "gpu" else "rocm") == 0
    assert not caplog.records, "there is no GPU here to be told of"


def test_a_program_for_a_hopper_that_runs_on_a_cpu_gets_xla():
    with on("NVIDIA H200"):
        assert kernels(add_norm, "cpu") == 0


def test_layers_of_one_shape_share_a_kernel():
    def layers(x, terms, valid, gain):
        x = x + 1  # of the kind that a layer makes: jax tells arguments from results
        for _ in range(3):
            x, _, _ = add_norm(x, terms, valid, gain)
        return x

    with on("NVIDIA H200"):
        assert kernels(layers) == 1


def test_a_name_runs_or_raises():
    run = functools.partial(dispatch.run, "op", xla=lambda x: x + 1)
    assert run(None, 1) == run("xla", 1) == 2
    with pytest.raises(ValueError, match="None, 'xla' or 'mosaic'; got 'triton'"):
        run("triton", 1)
    with pytest.raises(NotImplementedError, match="op has no kernel; pass None or 'xla'"):
        run("mosaic", 1)
    with pytest.raises(NotImplementedError, match="no 'mosaic' implementation for this call: too large; pass None or 'xla'"):
        run("mosaic", 1, kernel=lambda: (lambda x: x - 1, "too large"))
    assert run("mosaic", jnp.int32(1), kernel=lambda: (lambda x: x - 1, None)) == 0
    with on("NVIDIA H200"):
        assert run(None, 1, kernel=lambda: (lambda x: x - 1, "too large")) == 2


@pytest.mark.parametrize("implementation", ["xla", None])
def test_a_kernel_that_cannot_run_here_is_not_loaded(implementation):
    assert dispatch.run("op", implementation, 1, xla=lambda x: x + 1, kernel=lambda: pytest.fail("the kernel was asked for")) == 2


def test_a_kernel_is_left_out_by_name_of_what_is_traced_within():
    with on("NVIDIA H200"):
        with dispatch.without(["add_norm"]):
            assert kernels(lambda *x: add_norm(*x)) == 0
            with dispatch.without(["route"]):  # which adds to it
                assert kernels(lambda *x: add_norm(*x)) == 0
            assert kernels(functools.partial(add_norm, implementation="mosaic")) == 1, "a named one runs"
        with dispatch.without(["route"]):
            assert kernels(lambda *x: add_norm(*x)) == 1
        assert kernels(lambda *x: add_norm(*x)) == 1


def test_names_of_kernels_that_are_none_are_refused():
    with pytest.raises(ValueError, match="must be of project_qkv, .*; got add norm; use these names"), dispatch.without(["add norm"]):
        pass


def test_what_threads_leave_out_is_their_own():
    def other():
        return dispatch._left_out.get()

    with dispatch.without(["route"]), ThreadPoolExecutor(1) as pool:
        assert pool.submit(other).result() == frozenset() and other() == {"route"}


@pytest.mark.quick("9-attention_prefill")
@pytest.mark.parametrize("tokens, name", [(1, "attention_decode"), (8, "attention_decode"), (9, "attention_prefill")])
def test_attention_has_two_kernels(tokens, name):
    low = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    pages = low(2, 1, 64, 64)
    arguments = (low(1, tokens, 8, 64), pages, pages, ints(1, 2), ints(1, tokens), ints(1), jax.ShapeDtypeStruct((8,), jnp.float32))

    def count(left_out):
        def op(*x):
            with dispatch.without(left_out):
                return paged_attention(*x, window=None)

        return jax.jit(op).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text().count("mosaic_gpu_v2")

    with on("NVIDIA H200"):
        assert count([name]) == 0 < count({"attention_decode", "attention_prefill"} - {name})
