"""Programs of kinds of hooks: which are kept, who waits for them, and functions that none can be made of."""

import threading

import jax
import jax.numpy as jnp
from mixed_requests import CONTEXT
import pytest
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax.engine.device.of_hooks import MOST, OfHooks, check_functions
from gptoss_jax.engine.hooks.kinds import inside_of

POST = "layers.0.residual_post"


def test_of_many_kinds_the_longest_unused_goes_and_one_that_cannot_be_made_leaves_nothing():
    class Made:
        decode = read = None

        def __init__(self, kind):
            self.kind = kind

        def compile(self, *, reads):
            if self.kind == "bad":
                raise ValueError("no")
            self.decode = True

    kept = OfHooks(Made)
    first = kept.get("first", reads=False)
    for i in range(MOST - 1):
        kept.get(i, reads=False)
        assert kept.get("first", reads=False) is first
    with pytest.raises(ValueError):
        kept.get("bad", reads=False)
    kept.get("more", reads=False)
    assert len(kept) == MOST and kept.get("first", reads=False) is first and not kept.has(0, reads=False)


def test_who_has_programs_waits_for_nobody_s_compilation():
    compiling, go_on = threading.Event(), threading.Event()

    class Made:
        decode = read = None

        def __init__(self, kind):
            self.kind = kind

        def compile(self, *, reads):
            if self.kind == "new":
                compiling.set()
                assert go_on.wait(60)
            self.decode = True

    kept = OfHooks(Made)
    first = kept.get("first", reads=False)
    thread = threading.Thread(target=lambda: kept.get("new", reads=False))
    thread.start()
    assert compiling.wait(60) and kept.get("first", reads=False) is first and not kept.has("new", reads=False)
    go_on.set()
    thread.join()
    assert kept.has("new", reads=False) and not kept.has("new", reads=True)


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda value: 1 / 0, "it raised ZeroDivisionError"),
        (lambda value: value.astype(jnp.bfloat16), "got bfloat16"),
        (lambda value: value[0], "must return an array like the one it got"),
        (lambda value: None, "got NoneType"),
        (lambda value: 3.0, "got float"),
        (lambda value: jax.pure_callback(lambda x: x, value, value), "calls back"),
        (lambda value: (jax.debug.print("{}", value[0, 0, 0]), value)[1], "calls back"),
        (jax.jit(lambda value: jax.lax.map(lambda x: jax.pure_callback(lambda x: x, x, x), value)), "calls back"),
        (lambda value: value if value[0, 0, 0] > 0 else -value, "it raised TracerBoolConversionError"),
    ],
    ids=["raises", "dtype", "shape", "nothing", "a number", "a callback", "printing", "a callback inside", "a branch"],
)
def test_a_function_that_is_none_is_refused(function, words):
    kind = inside_of(gj.patching({POST: function}), small_model().config, CONTEXT).kind
    with pytest.raises(ValueError, match="^[^\n]{20,600}$") as error:
        check_functions(kind, small_model().config, CONTEXT)
    assert words in str(error.value)


def test_a_function_may_have_any_name():
    def my_callback(value):
        return jax.nn.relu(value)

    kind = inside_of(gj.patching({POST: jax.jit(my_callback)}), small_model().config, CONTEXT).kind
    check_functions(kind, small_model().config, CONTEXT)
