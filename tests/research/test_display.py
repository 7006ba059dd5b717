"""Trees in Treescope: what is shown, that no numbers are looked at, and that nothing else is shown otherwise."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax import adapters
from gptoss_jax.model.params import abstract_params
from gptoss_jax.parallel import sharding
from gptoss_jax.research import display

treescope = pytest.importorskip("treescope", reason="notebooks need the extra `notebooks`")


@pytest.fixture(autouse=True)
def ours():
    before = treescope.active_renderer.get()
    display.treescope(interactive=False)
    yield
    treescope.active_renderer.set_globally(before)


def shown(value, height: int = 60) -> str:
    with treescope.using_expansion_strategy(max_height=height):
        return treescope.render_to_text(value, ignore_exceptions=False)


@pytest.mark.thorough
@pytest.mark.parametrize("experts", ["packed", "tiled", "stacked", "split"])
def test_params_are_shapes_dtypes_and_bytes(experts):
    config = gj.load("nano", progress=False).config
    text = shown(abstract_params(config, experts=experts))
    assert text.startswith("Params<") and f"embedding=<bfloat16[{config.vocab_size}, {config.hidden_size}] 164 kB>" in text
    assert "partition" not in text and "without" not in text and "init" not in text
    E, D, F = config.num_local_experts, config.hidden_size, config.intermediate_size
    wanted = {
        "packed": f"gate_up=Mxfp4<[{E}, {2 * F}, {D}] 69.6 kB>(",
        "tiled": f"gate_up=Tiles<[{E}, {2 * F}, {D}] ",
        "stacked": f"gate_up=<bfloat16[{E}, {2 * F}, {D}] 262 kB>",
        "split": f"gate_up=<{E} × bfloat16[{2 * F}, {D}] 65.5 kB>",
    }[experts]
    assert wanted in text
    assert treescope.render_to_html(abstract_params(config, experts=experts))


@pytest.mark.thorough
def test_no_number_is_looked_at(monkeypatch):
    params = small_model().params
    seen = []
    monkeypatch.setattr(type(params.embedding), "__array__", lambda *_, **__: seen.append("fetched"))
    monkeypatch.setattr(type(params.embedding), "_value", property(lambda _: seen.append("fetched")))
    with jax.log_compiles(False), jax.disable_jit():
        text = shown(params)
    assert "Layer<" in text and not seen
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    assert shown(abstract) == text, "arrays without numbers are shown alike"


@pytest.mark.thorough
def test_a_model_of_many_layers_is_not_unfolded():
    params = abstract_params(small_model().config)
    many = params.replace(layers=params.layers[:1] * 60)
    text = shown(many, height=200)
    assert text.count("\n") < 10 and "layers=<60 × Layer 22 MB>(Layer<" in text
    assert len(treescope.render_to_html(many)) < 200_000


@pytest.mark.thorough
def test_adapters_and_what_they_are_attached_to():
    model = small_model(experts="packed")
    adapter = adapters.init(jax.random.key(0), model.config, rank=4, targets=["q_proj", "down_proj"])
    text = shown({"layers.0.q_proj": adapter["layers.0.q_proj"]})
    assert re.fullmatch(r"\{\s*'layers\.0\.q_proj': Factors<.* kB>\(\s*a=<float32\[4, 96\].*scale=1\.0,?\s*\),?\s*\}", text, re.S)
    text = shown(adapters.attach(model.params, model.config, adapter).layers[0])
    assert "qkv=LowRank<[2, 7, 64, 96] " in text and "down=LowRank<[6, 96, 64] " in text and "base=Mxfp4<[6, 96, 64] " in text
    assert "which" not in text


@pytest.mark.thorough
def test_a_mesh_is_a_line_and_arrays_say_what_a_device_has():
    config = small_model().config
    partition = sharding.Partition(jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "heads", "repeat")))
    text = shown(abstract_params(config, partition=partition))
    assert "partition=<Partition data=1, heads=1, repeat=1 of 1 devices>" in text
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    array = jax.device_put(np.zeros((4, 6), np.float32), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))
    assert "a=<float32[4, 6] 96 B, [2, 6] on each of 2 devices>" in shown(adapters.Factors(array, array))


@pytest.mark.thorough
def test_everything_else_is_treescope_s_own():
    values = {"layers.0.residual_post": jnp.ones((1, 2, 8)), "config": small_model().config}
    text = shown(values)
    assert "'layers.0.residual_post': " in text and "float32(1, 2, 8)" in text and "hidden_size=96," in text
    model = shown(small_model())
    assert model.startswith("Model(") and "tokenizer" not in model, "what is None is left out"


@pytest.mark.thorough
def test_treescope_is_imported_where_it_is_asked_for(monkeypatch):
    code = "import sys; from gptoss_jax.research import display; sys.exit('treescope' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    monkeypatch.setitem(sys.modules, "treescope", None)
    with pytest.raises(ImportError, match=r"this display needs Treescope, which is not installed; pip install 'gptoss-jax\[notebooks\]'"):
        display.treescope()


@pytest.mark.thorough
def test_it_may_be_asked_for_twice():
    count = len(treescope.active_renderer.get().handlers)
    display.treescope(interactive=False)
    assert len(treescope.active_renderer.get().handlers) == count
