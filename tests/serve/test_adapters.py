"""Adapters as a server has them: a model's name means one, and they are listed beside the model."""

import asyncio
import json
from types import SimpleNamespace

from byte_tokenizer import ByteTokenizer
import pytest

from gptoss_jax.openai.errors import Refused
from gptoss_jax.serve.__main__ import _adapters
from gptoss_jax.serve.endpoints.answering import Answering
from gptoss_jax.serve.endpoints.models import Models
from gptoss_jax.serve.service import Service
from gptoss_jax.serve.settings import Settings

MESSAGES = [{"role": "user", "content": "27 + 58"}]


def service(**settings):
    engine = SimpleNamespace(slots=1, context=64, asleep=False)
    llm = SimpleNamespace(tokenizer=ByteTokenizer(), engine=engine, adapters={"sums": object(), "nano": object()})
    return Service(Settings("nano", **settings), llm)


def asked(endpoint, model, **settings):
    body = {"model": model} | ({"messages": MESSAGES} if endpoint == "chat" else {"input": "27 + 58"})
    if endpoint == "completions":
        body = {"model": model, "prompt": ["27", "58"]}
    return Answering(service(**settings), endpoint)._asked(json.dumps(body).encode(), "x")


@pytest.mark.parametrize("endpoint", ["chat", "completions", "responses"])
def test_a_models_name_is_an_adapters(endpoint):
    """The model's own name is the model's, whatever an adapter is called."""
    for name, adapter in (("sums", "sums"), ("nano", None), (None, None), ("", None), ("gpt-4o", None)):
        tasks = asked(endpoint, name).tasks
        assert tasks and all(task.adapter == adapter for task in tasks)
    assert all(task.adapter == "sums" for task in asked(endpoint, "sums", strict=True).tasks)
    with pytest.raises(Refused, match="model must be one that is served here; got 'gpt-4o'; pass 'nano' or 'sums'"):
        asked(endpoint, "gpt-4o", strict=True)


def test_adapters_are_listed_beside_the_model():
    models = Models(service())
    listed = json.loads(asyncio.run(models.all(None)).body)["data"]
    assert [(one["id"], one["root"], one.get("parent")) for one in listed] == [("nano", "nano", None), ("sums", "nano", "nano")]
    one = asyncio.run(models.one(SimpleNamespace(path_params={"name": "sums"})))
    assert json.loads(one.body) == listed[1]
    with pytest.raises(Refused, match="got 'other'"):
        asyncio.run(models.one(SimpleNamespace(path_params={"name": "other"})))


def test_the_flag():
    assert _adapters([" sums = a/b ", "others=c=d"], "nano") == {"sums": "a/b", "others": "c=d"}
    for wrong in (["a"], ["=x"], ["a="], ["a=x", "a=y"], ["nano=x"], ["x" * 300 + "=y"], [""]):
        with pytest.raises(ValueError, match="--adapters must be name=directory,... with each name once, and not the model's; got"):
            _adapters(wrong, "nano")
