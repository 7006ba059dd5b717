"""A model runs where its parameters lie: on any one device, several models side by side, with the same bits on each."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
from mixed_requests import MIXED, everything, fresh
import numpy as np
import pytest
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax import adapters
from gptoss_jax.engine.engine import Engine
from gptoss_jax.model.cache import init_cache
from gptoss_jax.parallel import sharding
from gptoss_jax.research import lenses

PROMPTS = [[5, 6, 7, 8, 9], [1] * 40, [200, 3, 100]]
TOKENS = jnp.arange(9)[None]
DRAWN = gj.Sampling(temperature=1, seed=4, max_tokens=12, logprobs=3, ignore_eos=True)


def device(number: int) -> jax.Device:
    return jax.devices()[number]


def on(number: int | None, model: gj.Model | None = None) -> gj.Model:
    """A model that was moved to a device; None: to the second one, without JAX being told that it shall stay there."""
    model = model or small_model()
    if number is not None:
        return dataclasses.replace(model, params=jax.device_put(model.params, device(number)))
    with jax.default_device(device(1)):
        return dataclasses.replace(model, params=jax.tree.map(lambda x: jax.device_put(np.asarray(x)), model.params))


def engine(model: gj.Model, **options) -> Engine:
    sizes = {"slots": 4, "context": 96, "chunk": 32, "page": 16}
    return Engine(model.params, model.config, eos_token_ids=(319,), **sizes | options)


def devices(tree) -> set[jax.Device]:
    return {one for x in jax.tree.leaves(tree) for one in x.devices()}


def test_whatever_an_engine_makes_lies_where_its_params_lie():
    """Its state, and the arguments of its programs; the whole of it runs below."""
    for number in (3, None):
        programs = engine(on(number)).programs
        programs._state = programs.empty_state()
        given = [call[1] for call in programs._calls().values()]
        arrays = [x for x in jax.tree.leaves((programs._state, given)) if isinstance(x, jax.Array)]
        assert len(arrays) > 100 and devices(arrays) == devices(programs.params)


def everything_of(llm: gj.LLM):
    """Of generation, scores and replay."""
    drawn = llm.generate(PROMPTS, DRAWN)
    scored = llm.prompt_logprobs(PROMPTS, top=2)
    replayed = llm.replay(PROMPTS, [one.tokens for one in drawn])
    assert [one.logprobs for one in replayed] == [one.logprobs for one in drawn]
    return [(one.tokens, one.logprobs, one.top_logprobs) for one in drawn], [(one.logprobs.tolist(), one.top_logprobs) for one in scored]


@pytest.mark.slow
def test_models_on_several_devices_at_once_give_the_same_bits():
    """Whichever device is the default where they are asked, and whether JAX was told that parameters stay where they are."""
    models, found, compiled = [small_model(), on(1), on(None)], [[], [], []], []
    llms = [gj.LLM(model, slots=2, context=96) for model in models]

    def ask(number: int) -> None:
        with jax.default_device(device(7 - number)):
            found[number].append(everything_of(llms[number]))

    def ask_all() -> None:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    ask_all()
    assert found[0] == found[1] == found[2] and len(found[0]) == 1
    assert [devices(llm.engine.programs._state) for llm in llms] == [{device(number)} for number in (0, 1, 1)]
    for llm in llms:
        llm.engine.programs.renew()  # as after a failure
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    try:
        with jax.default_device(device(4)):  # of which no program knows
            found[1].append(everything_of(llms[1]))
    finally:
        jax.monitoring.clear_event_listeners()
    assert found[1][0] == found[1][1] and not [name for name in compiled if "compile" in name]


@pytest.mark.thorough
def test_requests_of_several_kinds_on_another_device():
    wanted, here = everything(engine(small_model()), fresh(MIXED[:5])), engine(on(3))
    assert everything(here, fresh(MIXED[:5])) == wanted
    assert devices(here.programs._state) == {device(3)} == devices(here.params)


@pytest.mark.quick("split")
@pytest.mark.parametrize("form", ["split", "packed", "stacked"])
def test_what_is_loaded_lies_on_the_default_device_and_stays_there(tiny, form):
    with jax.default_device(device(2)):
        model = gj.load(tiny, experts=form, progress=False)
    assert devices(model.params) == {device(2)} and all(x.committed for x in jax.tree.leaves(model.params))
    with jax.default_device("cpu"):
        assert devices(gj.load(tiny, experts=form, progress=False).params) == {device(0)}


@pytest.mark.thorough
def test_an_orbax_directory_goes_from_one_device_to_another(tmp_path):
    gj.save(on(3), tmp_path / "saved")
    with jax.default_device(device(6)):
        model = gj.load(tmp_path / "saved", progress=False, dtype="float32", experts="stacked")
    assert devices(model.params) == {device(6)}
    jax.tree.map(np.testing.assert_array_equal, model.params, small_model().params)


@pytest.mark.thorough
@pytest.mark.parametrize("way", [adapters.attach, adapters.merge], ids=["attach", "merge"])
def test_adapters_come_to_the_params(tiny, way):
    """An adapter lies where it was loaded; what becomes of it and parameters lies where these do."""
    base = gj.load(tiny, dtype="float32", experts="packed", progress=False)
    adapter = adapters.load(tiny / "adapter", base.config)
    for model in (base, on(4, base), on(None, base)):
        assert devices(way(model.params, model.config, adapter)) == devices(model.params)


@pytest.mark.slow
def test_generation_with_adapters_on_another_device(tiny):
    base = gj.load(tiny, dtype="float32", experts="packed", progress=False)
    adapter, answers = adapters.load(tiny / "adapter", base.config), []
    for model in (base, on(4, base), on(None, base)):
        llm = gj.LLM(dataclasses.replace(model, params=adapters.attach(model.params, model.config, adapter)), slots=2, context=96)
        answers.append(llm.generate(PROMPTS[0], DRAWN))
        assert devices(model.params) == devices(llm.engine.programs._state)
    assert answers[0].logprobs == answers[1].logprobs == answers[2].logprobs


def test_adapters_lie_on_the_mesh_of_the_params(tiny):
    model = gj.load(tiny, progress=False, experts="packed", mesh=gj.mesh(2, 2))
    adapter = adapters.load(tiny / "adapter", model.config)
    params = adapters.attach(model.params, model.config, adapter)
    assert sharding.home(params.partition, params) is params.partition
    assert devices(adapter) == {device(0)}


@pytest.mark.thorough
def test_hooks_and_lenses_run_where_the_params_lie():
    names, found = ["layers.0.residual_mid", "layers.1.moe.out", "logits"], []
    for model in (small_model(), on(5)):
        seen = jax.jit(gj.capture(gj.forward, names), static_argnames="config")(model.params, model.config, TOKENS)
        lens = lenses.logit_lens(model.params, model.config, seen[1]["layers.0.residual_mid"][None])
        assert devices((seen, lens)) == devices(model.params)
        found.append(jax.tree.map(np.asarray, (seen, lens)))
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_a_mesh_of_one_device_is_that_device(tiny):
    model = gj.load(tiny, progress=False, mesh=gj.mesh(1, 1, devices=[device(3)]))
    assert devices(model.params) == {device(3)}
    assert engine(model).params.partition is model.params.partition


def test_a_cache_is_made_where_it_is_wanted():
    config = small_model().config
    for dtype in ("bfloat16", "float8_e4m3fn"):
        assert devices(init_cache(config, 2, 64, chunk=16, dtype=dtype, partition=device(6))) == {device(6)}


def test_a_home_is_one_device_or_one_mesh():
    params = small_model().params
    spread = jax.device_put(params, jax.sharding.NamedSharding(gj.mesh(2, 2), jax.sharding.PartitionSpec()))
    partition = sharding.partition(gj.mesh(2, 2), small_model().config)
    assert sharding.home(None, params) == device(0) and sharding.home(None, on(4).params) == device(4)
    assert sharding.home(partition, spread) is partition
    jax.jit(lambda x: sharding.home(None, x))(params.norm)  # where traced arrays will lie is not known: no error
    abstract = jax.eval_shape(lambda x: x, params)
    assert sharding.home(None, abstract) is None and sharding.home(None, ()) is None
    for wrong, said in (
        (params.replace(norm=on(4).params.norm), "must all lie on one device, .*0; norm lies on .*4; move all of them with jax.device_put"),
        (spread, "without a mesh must lie on one device; embedding lies on 4, .*; load the model with mesh="),
        (params.replace(norm=np.asarray(params.norm)), "must be JAX's arrays; norm is a numpy.ndarray; put them on a device"),
        (params.replace(partition=partition), "must all lie on the 4 devices of their mesh, .*; embedding lies on .*0; move all"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            gj.LLM(dataclasses.replace(small_model(), params=wrong), slots=2, context=96)
        assert "\n" not in str(caught.value)


def test_forward_says_where_things_lie_that_cannot_be_computed_together():
    first, second = on(0), on(1)
    mixed = first.params.replace(embedding=second.params.embedding)
    with pytest.raises(ValueError, match=r"^parameters must all lie on one device, .*; .* lies on .*; .*\.$"):
        gj.forward(mixed, first.config, TOKENS)
    with pytest.raises(ValueError, match=r"^tokens must lie where the parameters do; got some on .*; pass NumPy's, which lie anywhere\.$"):
        gj.forward(second.params, second.config, jax.device_put(TOKENS, device(2)))
