"""Low-rank adapters: PEFT's files and logits, beside the weights and merged, their derivatives, what is refused."""

import dataclasses
import json
import shutil
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from safetensors.numpy import load_file, save_file
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax import adapters
from gptoss_jax.adapters import files
from gptoss_jax.model.transformer import forward
from pallas_kernels.mxfp4 import Mxfp4

EXACT = 1e-5  # as in test_goldens
TOKENS = np.random.default_rng(0).integers(0, 320, (2, 24), np.int32)
run = jax.jit(forward, static_argnames="config")


@pytest.fixture(scope="module")
def golden(tiny):
    return dict(np.load(tiny / "research.npz"))


def drawn(config, **options):
    """An adapter whose second factors are not zero."""
    adapter = adapters.init(jax.random.key(0), config, **options)
    keys = jax.random.split(jax.random.key(1), len(adapter))
    return {name: f.replace(b=0.3 * jax.random.normal(k, f.b.shape, f.b.dtype)) for k, (name, f) in zip(keys, adapter.items(), strict=True)}


@pytest.mark.quick("adapter-packed")
@pytest.mark.parametrize("experts", ["packed", "stacked", "split"])
@pytest.mark.parametrize("name", ["adapter", "adapter_rslora"])
def test_logits_are_those_of_peft(tiny, golden, name, experts):
    model = gj.load(tiny, dtype="float32", experts=experts, progress=False)
    adapter = adapters.load(tiny / name, model.config)
    apart = adapters.attach(model.params, model.config, adapter)
    wanted = golden[f"{name}_logits"]
    assert oracle.error(golden["logits"], wanted) > 0.1
    assert oracle.error(run(apart, model.config, golden["tokens"][None])[0], wanted) < EXACT
    merged = adapters.merge(model.params, model.config, adapter)
    assert oracle.error(run(merged, model.config, golden["tokens"][None])[0], wanted) < EXACT
    if name == "adapter":
        assert jax.tree.structure(merged) == jax.tree.structure(
            gj.load(tiny, experts=experts.replace("packed", "stacked"), progress=False).params
        )


@pytest.mark.parametrize("name", ["adapter", "adapter_rslora"])
def test_what_is_saved_is_what_peft_saved(tiny, tmp_path, name):
    config = gj.Config.from_json(tiny / "config.json")
    adapter = adapters.load(tiny / name, config)
    adapters.save(adapter, tmp_path / "again", base="tiny")
    ours, theirs = (load_file(directory / "adapter_model.safetensors") for directory in (tmp_path / "again", tiny / name))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert np.array_equal(ours[key], tensor), key
    again = adapters.load(tmp_path / "again", config)
    assert again.keys() == adapter.keys()
    assert all(again[name].scale == pytest.approx(adapter[name].scale, rel=1e-12) for name in adapter)


def test_factors_of_experts_that_lead_the_other_way_are_turned(tiny, tmp_path):
    """As PEFT 0.19 and later writes them beside older transformers: A [E*r, out] and B [in, r*E], where delta is (B @ A).T here."""
    config = gj.Config.from_json(tiny / "config.json")
    shutil.copytree(tiny / "adapter", tmp_path / "turned")
    path, E = tmp_path / "turned" / "adapter_model.safetensors", config.num_local_experts
    tensors = load_file(path)
    for name in [name for name in tensors if "experts" in name and "lora_A" in name]:
        other = name.replace("lora_A", "lora_B")
        a, b = tensors[name], tensors[other]
        a = a.reshape(E, -1, a.shape[1])  # [E, r, in]
        b = b.reshape(b.shape[0], -1, E).transpose(2, 0, 1)  # [E, out, r]
        tensors[name] = np.ascontiguousarray(b.swapaxes(1, 2).reshape(-1, b.shape[1]))
        tensors[other] = np.ascontiguousarray(a.transpose(2, 1, 0).reshape(a.shape[2], -1))
    save_file(tensors, path)
    turned, straight = adapters.load(tmp_path / "turned", config), adapters.load(tiny / "adapter", config)
    for name, factors in straight.items():
        product = lambda f: np.asarray(f.b, np.float64) @ np.asarray(f.a, np.float64)
        np.testing.assert_allclose(product(turned[name]), product(factors), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("version, refused", [("0.18.1", False), (None, False), ("0.19.1", True)])
def test_a_square_down_proj_alone_does_not_tell_its_way(tmp_path, version, refused):
    model = small_model()
    config = dataclasses.replace(model.config, intermediate_size=model.config.hidden_size)
    adapters.save(adapters.init(jax.random.key(0), config, rank=2, targets=("down_proj",)), tmp_path / "square")
    path = tmp_path / "square" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_version": version}))
    if refused:
        with pytest.raises(ValueError, match="does not tell which way"):
            adapters.load(tmp_path / "square", config)
    else:
        assert adapters.load(tmp_path / "square", config)["layers.0.down_proj"].rank == 2


def test_a_new_adapter_changes_nothing_and_saves_and_loads(tmp_path):
    model = small_model(experts="packed")
    adapter = adapters.init(jax.random.key(3), model.config, rank=2, alpha=8, targets=("q_proj", "down_proj"), layers=[1], dtype="bfloat16")
    assert list(adapter) == ["layers.1.q_proj", "layers.1.down_proj"]
    assert all(f.scale == 4 and f.a.dtype == jnp.bfloat16 and not np.any(f.b) and np.any(f.a) for f in adapter.values())
    apart = adapters.attach(model.params, model.config, adapter)
    assert oracle.error(run(apart, model.config, TOKENS), run(model.params, model.config, TOKENS)) < EXACT
    adapters.save(adapter, tmp_path / "new")
    again = adapters.load(tmp_path / "new", model.config)
    assert jax.tree.structure(again) == jax.tree.structure(dict(adapter))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(adapter), strict=True))
    with pytest.raises(ValueError, match="must not exist yet"):
        adapters.save(adapter, tmp_path / "new")


@pytest.mark.thorough
@pytest.mark.parametrize("experts", ["packed", pytest.param("split", marks=pytest.mark.slow)])
def test_gradients_of_an_adapter_are_its_share_of_those_of_the_weights(experts):
    """With w = base + scale * b @ a: the gradient of b is scale * g @ a.T, of a scale * b.T @ g, where g is that of the merged weights."""
    model = small_model(experts=experts)
    c, adapter = model.config, drawn(model.config, rank=2, alpha=3)
    loss = lambda params: jnp.sum(jnp.sin(forward(params, c, TOKENS)))
    got = jax.jit(jax.grad(lambda adapter: loss(adapters.attach(model.params, c, adapter))))(adapter)
    merged = adapters.merge(small_model(experts="stacked").params, c, adapter)
    whole = jax.jit(jax.grad(loss))(merged)
    for i, layer in enumerate(whole.layers):
        qkv, D = layer.attention.qkv, c.hidden_size
        weights = {
            "q_proj": qkv[:, :-2].reshape(-1, D), "k_proj": qkv[:, -2].reshape(-1, D), "v_proj": qkv[:, -1].reshape(-1, D),
            "o_proj": layer.attention.out, "gate_up_proj": layer.moe.gate_up, "down_proj": layer.moe.down,
        }  # fmt: skip
        for target, g in weights.items():
            name = f"layers.{i}.{target}"
            factors = adapter[name]
            across = lambda x: np.swapaxes(np.asarray(x, np.float64), -1, -2)
            wanted_b = factors.scale * np.asarray(g, np.float64) @ across(factors.a)
            wanted_a = factors.scale * across(factors.b) @ np.asarray(g, np.float64)
            assert oracle.error(got[name].b, wanted_b) < 20 * EXACT, name  # of derivatives, which cancel more than logits
            assert oracle.error(got[name].a, wanted_a) < 20 * EXACT, name


def test_packed_experts_stay_packed_beside_an_adapter():
    model = small_model(experts="packed")
    apart = adapters.attach(model.params, model.config, adapters.init(jax.random.key(0), model.config))
    assert isinstance(apart.layers[0].moe.gate_up.base, Mxfp4)
    assert apart.layers[0].moe.gate_up.base.blocks is model.params.layers[0].moe.gate_up.blocks


@pytest.mark.thorough
def test_generation_with_an_adapter_is_that_of_the_merged_model(tiny):
    model = gj.load(tiny, dtype="float32", experts="packed", progress=False)
    adapter = adapters.load(tiny / "adapter", model.config)
    answers = []
    for way in (adapters.attach, adapters.merge):
        llm = gj.LLM(dataclasses.replace(model, params=way(model.params, model.config, adapter)), slots=2, context=128)
        answers.append(llm.generate([5, 6, 7], gj.Sampling(temperature=0, max_tokens=12, logprobs=0, ignore_eos=True)))
    assert answers[0].tokens == answers[1].tokens
    np.testing.assert_allclose(answers[0].logprobs, answers[1].logprobs, atol=1e-3)


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(1, 2), (2, 4)], ids=str)
def test_on_a_mesh(tiny, golden, shape):
    """Experts may be wider there than they are."""
    mesh = gj.mesh(*shape)
    model = gj.load(tiny, dtype="float32", experts="packed", progress=False, mesh=mesh)
    adapter = adapters.load(tiny / "adapter", model.config)
    tokens = np.tile(golden["tokens"][None], (2, 1))
    for way in (adapters.attach, adapters.merge):
        logits = run(way(model.params, model.config, adapter), model.config, tokens)
        assert oracle.error(logits[1], golden["adapter_logits"]) < EXACT, way


def test_an_adapter_is_saved_by_itself(tmp_path):
    model = small_model()
    apart = adapters.attach(model.params, model.config, adapters.init(jax.random.key(0), model.config))
    with pytest.raises(ValueError, match="has an adapter beside its weights"):
        gj.save(gj.Model(model.config, apart, None), tmp_path / "out")
    with pytest.raises(ValueError, match="have an adapter already"):
        adapters.attach(apart, model.config, adapters.init(jax.random.key(0), model.config))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "changes the base weights"),
        ({"a_later_variant": {"on": 1}}, "a_later_variant"),
    ],
)
def test_settings_that_are_not_computed_are_refused(tiny, tmp_path, changes, message):
    shutil.copytree(tiny / "adapter", tmp_path / "changed")
    path = tmp_path / "changed" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        adapters.load(tmp_path / "changed", gj.Config.from_json(tiny / "config.json"))


@pytest.mark.parametrize("kind", ["router", "half", "other model", "no file"])
def test_tensors_that_do_not_fit_are_refused(tiny, tmp_path, kind):
    config = gj.Config.from_json(tiny / "config.json")
    shutil.copytree(tiny / "adapter", tmp_path / "changed")
    path = tmp_path / "changed" / "adapter_model.safetensors"
    tensors = load_file(path)
    if kind == "router":
        tensors["base_model.model.model.layers.0.mlp.router.lora_A.weight"] = np.zeros((3, 96), np.float32)
    if kind == "half":
        del tensors["base_model.model.model.layers.2.self_attn.q_proj.lora_B.weight"]
    path.unlink()
    if kind != "no file":
        save_file(tensors, path)
    if kind == "other model":
        config = dataclasses.replace(config, num_attention_heads=8)
    message = {
        "router": "1 are not: .*router",
        "half": "must have lora_A and lora_B",
        "other model": "layers.0.q_proj needs",
        "no file": "adapter_model.safetensors is absent",
    }
    with pytest.raises((ValueError, FileNotFoundError), match=message[kind]):
        adapters.load(tmp_path / "changed", config)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rank": 0}, "rank must be a positive integer"),
        ({"targets": ("router",)}, "targets must be some of q_proj"),
        ({"rank": 10**9}, "rank must be a positive integer, 1,048,576 at most; got 1000000000"),
        ({"targets": None}, "targets must be some of .*; got None; pass a list"),
        ({"targets": "q_proj"}, "targets must be some of .*; got 'q_proj'; pass a list"),
        ({"layers": 1}, r"layers must lie in 0 \.\.\. 1; got 1; pass a list"),
        ({"alpha": "x"}, "alpha must be a number, 1e\\+09 at most; got 'x'"),
        ({"alpha": float("nan")}, "alpha must be a number, .*; got nan"),
        ({"dtype": "int8"}, "dtype must be a type of floating-point numbers; got 'int8'"),
        ({"dtype": 5}, "dtype must be a type of floating-point numbers; got 5"),
        ({"key": 0}, r"key must be a random key of JAX's; got 0; pass jax\.random\.key\(0\)"),
        ({"config": None}, "config must be the geometry of a model; got a NoneType"),
        ({"layers": [7]}, r"layers must lie in 0 \.\.\. 1"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        adapters.init(**{"key": jax.random.key(0), "config": small_model().config} | options)


def test_files_that_hold_no_adapter_and_disks_that_take_none(tiny, tmp_path, monkeypatch):
    config = gj.Config.from_json(tiny / "config.json")
    for kind, message in (("none", "must hold an adapter's tensors; got none"), ("nan", "got NaN or infinity; save it again from a")):
        shutil.copytree(tiny / "adapter", tmp_path / kind)
        path = tmp_path / kind / "adapter_model.safetensors"
        tensors = {name: tensor * np.float32("nan") for name, tensor in load_file(path).items()} if kind == "nan" else {}
        path.unlink()
        save_file(tensors, path)
        with pytest.raises(ValueError, match=message) as error:
            adapters.load(tmp_path / kind, config)
        assert "check=" not in str(error.value)
    adapter = adapters.load(tiny / "adapter", config)
    with pytest.raises(ValueError, match="base must be the name of a model, or a path as a string; got 5"):
        adapters.save(adapter, tmp_path / "new", base=5)
    for raised in (OSError(28, "No space left on device"), RuntimeError("I/O error: No space left on device (os error 28)")):
        monkeypatch.setattr(files, "save_file", mock.Mock(side_effect=raised))
        with pytest.raises(OSError, match=r"new must be written whole; got: .*No space left on device.*; nothing is left of it: make room"):
            adapters.save(adapter, tmp_path / "new")
        assert not list(tmp_path.glob("new*"))
