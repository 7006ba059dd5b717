"""Whatever is wrong with a task, or is no task at all, is one outcome; the others are what they are without it."""

import dataclasses
import decimal
import enum
import functools
import itertools

from byte_tokenizer import ByteTokenizer
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax.engine.requests import Request

GREEDY = gj.Sampling(temperature=0, max_tokens=3, ignore_eos=True)


class Text(str):
    """A string of a caller's own."""


class Hostile:
    """Raises wherever it is looked at."""

    def _raise(self, *_):
        raise ZeroDivisionError("it cannot be looked at")

    __bool__ = __eq__ = __len__ = __iter__ = __getitem__ = __contains__ = __repr__ = __str__ = __int__ = __float__ = __index__ = _raise
    __lt__ = __le__ = __gt__ = __ge__ = _raise
    __hash__ = object.__hash__

    @property
    def ndim(self):
        raise OSError("nor here")


class Panic(BaseException):
    """What a library written in Rust raises where it gives up."""


class Panics(dict):
    def keys(self):
        raise Panic("unreachable")

    __iter__ = get = items = __getitem__ = __contains__ = keys


Color = enum.Enum("Color", ["RED"])
ODD = {
    "None": None, "int": 5, "zero": 0, "negative": -1, "huge": 10**5000, "float": 1.5, "nan": float("nan"), "bool": True,
    "complex": 1j, "decimal": decimal.Decimal(2), "text": "x", "empty text": "", "str subclass": Text("x"),
    "surrogate": "a\ud800", "nul": "\0", "bytes": b"x", "list": [1, 2], "empty list": [], "tuple": (), "list of None": [None],
    "set": {1}, "dict": {"a": 1}, "empty dict": {}, "odd keys": {5: 1, None: 2}, "message": [{"role": "user", "content": "x"}],
    "messages that are none": [5, None], "role of ints": [{"role": 5}], "array": np.array([1, 2]),
    "empty array": np.zeros(0, int), "0-d": np.array(1), "3-d": np.zeros((1, 1, 1), int), "floats": np.array([0.5]),
    "objects": np.array([None, "x"], object), "jax": jnp.array([1, 2]), "jax 0-d": jnp.array(1), "function": len, "type": int,
    "enum": Color.RED, "object": object(), "hostile": Hostile(), "list of hostile": [Hostile()], "range": range(3),
    "nested": functools.reduce(lambda inner, _: [inner], range(10**4), 1),
    "nested dict": functools.reduce(lambda d, _: {"a": d}, range(10**4), 1), "sampling": GREEDY, "task": gj.Task(prompt="x"),
    "panics": Panics(a=1), "generator": None,
}  # fmt: skip
FIELDS = [field.name for field in dataclasses.fields(gj.Task) if field.name != "key"]


@pytest.fixture(scope="module")
def llm():
    return gj.LLM(dataclasses.replace(small_model(), tokenizer=ByteTokenizer()), slots=4, context=512, chunk=16)


@pytest.fixture(scope="module")
def good(llm):
    return llm.generate("x", GREEDY)


def odd(name):
    return (i for i in (1, 2)) if name == "generator" else ODD[name]


@pytest.mark.quick("messages", "sampling", "options")
@pytest.mark.parametrize("field", FIELDS)
def test_a_bad_field_is_one_outcome_and_touches_no_other(llm, good, field):
    """Everything odd in each field, of a chat and of a prompt; between tasks that are right."""
    tasks = []
    for name, base in itertools.product(ODD, ({"messages": "x"}, {"prompt": "x"})):
        base = {} if field in ("messages", "prompt") else base
        tasks += [gj.Task(**({"sampling": GREEDY} | base | {field: odd(name)}), key=name), gj.Task(key="good", prompt="x", sampling=GREEDY)]
    if field == "sampling":  # the default goes on until the context is full
        tasks = [one for one in tasks if one.key != "None"]
    seen = list(llm.run(tasks))
    assert len(seen) == len(tasks) and {id(one.task) for one in seen} == {id(task) for task in tasks}
    for one in seen:
        if one.task.key == "good":
            assert one.answers == (good,) and one.error is None
        elif one.error is not None:
            assert not one.answers and 20 < len(one.error) < 700 and "\n" not in one.error, one.error
        else:
            assert one.answers and all(answer.tokens or answer.finish_reason == "timeout" for answer in one.answers), (field, one.task.key)
    unforeseen = {one.task.key for one in seen if one.failed}
    assert unforeseen <= {"hostile", "list of hostile", "panics", "surrogate"}, unforeseen
    assert llm.engine.wait_idle()


def test_things_that_are_no_tasks_are_refused_each(llm, good):
    things = [odd(name) for name in ODD if name != "task"] + [Request([1], GREEDY), gj.Task]
    seen = list(llm.run([*things, gj.Task(prompt="x", sampling=GREEDY)]))
    assert len(seen) == len(things) + 1
    assert [one.answers for one in seen if one.error is None] == [(good,)]
    assert all("a task must be a gptoss_jax.Task; got " in one.error and len(one.error) < 400 for one in seen if one.error)


@pytest.mark.parametrize("tasks", [None, 5, "text", b"x", {}, gj.Task(prompt="x"), gj.Task], ids=str)
def test_what_is_no_iterable_of_tasks_is_refused_at_once(llm, tasks):
    with pytest.raises(ValueError, match="run takes an iterable of Tasks; got "):
        llm.run(tasks)


@pytest.mark.parametrize("error", [OSError("gone"), StopIteration(), ZeroDivisionError(), RecursionError()], ids=repr)
def test_what_the_iterable_raises_comes_after_the_tasks_before_it(llm, good, error):
    class Breaks:
        left = 5

        def __iter__(self):
            return self

        def __next__(self):
            self.left -= 1
            if self.left == 0:
                raise error
            return gj.Task(prompt="x", sampling=GREEDY)

    seen = []
    try:
        seen += [one.answers for one in iter(llm.run(Breaks()).__next__, None)]
    except type(error) as raised:
        assert raised is error or isinstance(error, StopIteration)
    except RuntimeError:
        assert isinstance(error, StopIteration)
    assert llm.engine.wait_idle()


def test_what_no_prompt_could_heed_is_refused_beside_one(llm):
    for more in ({"tools": [{}]}, {"tool_choice": "auto"}, {"options": {"current_date": None}}):
        [done] = llm.run([gj.Task(prompt="x", sampling=GREEDY, **more)])
        assert f"{next(iter(more))} needs messages; a prompt is continued as it stands" in done.error and not done.failed
    [done] = llm.run([gj.Task(prompt="x", sampling=GREEDY, tools=[], options={})])
    assert done.error is None


def test_none_is_the_default_in_a_task_as_in_a_call(llm):
    one = gj.Task(messages="x", sampling=None, options=None, tools=None, time_limit=1e-9)
    [done] = llm.run([one])
    assert done.error is None and done.answers[0].finish_reason == "timeout"


def test_unknown_options_are_named_in_the_task_s_own_words(llm):
    for options, words in (
        ({"foo": 1}, "Task(options=...) takes no foo; it takes "),
        ({"max_tokens": 1}, "takes no max_tokens; it is an option of Sampling: pass sampling=Sampling(max_tokens=1)."),
        ({"tools": 1}, "takes no tools; it is a field of Task: pass Task(tools=1)."),
        ({5: 1}, "takes keywords, which are strings; got 5;"),
        ([1], "options must be a dict of keywords of chat; got [1]"),
    ):
        [done] = llm.run([gj.Task(messages="x", sampling=GREEDY, options=options)])
        assert words in done.error and not done.failed and not done.answers
