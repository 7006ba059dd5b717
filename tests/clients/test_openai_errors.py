"""What OpenAI's library raises where something is wrong: its typed exceptions, with a message, a code and the field to blame."""

import threading

from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI, RateLimitError
import pytest

pytestmark = pytest.mark.thorough

SUM = [{"role": "user", "content": "What is 40 + 45?"}]


@pytest.fixture
def client(served, http) -> OpenAI:
    return OpenAI(base_url=served.url, api_key="none", http_client=http, max_retries=0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", "hot"),
        ("max_tokens", 0),
        ("n", 1000),
        ("messages", []),
        ("messages", "hello"),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]),
        ("tools", [{"type": "function", "function": {"name": "a b"}}]),
        ("tool_choice", {"type": "function", "function": {"name": "nobody"}}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strange"}}}),
        ("logit_bias", {"x": 1}),
    ],
)
def test_a_request_that_cannot_be_answered(client, field, value, stream):
    with pytest.raises(BadRequestError) as raised:
        client.chat.completions.create(**{"model": "nano", "messages": SUM, "stream": stream, field: value})
    assert raised.value.param.split("[")[0].split(".")[0] == field and raised.value.code and raised.value.body["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("background", True),
        ("conversation", "conv_1"),
        ("prompt", {"id": "pmpt_1"}),
        ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]),
        ("text", {"format": {"type": "json_schema", "name": "x", "schema": {"type": "strange"}}}),
        ("max_output_tokens", -1),
        ("tools", {}),
    ],
)
def test_a_response_that_cannot_be_given(client, field, value):
    with pytest.raises(BadRequestError) as raised:
        client.responses.create(**{"model": "nano", "input": "x", field: value})
    assert raised.value.param.split("[")[0].split(".")[0] == field


@pytest.mark.parametrize(("field", "value"), [("suffix", "x"), ("best_of", 3), ("logprobs", 9), ("prompt", [[]])])
def test_a_completion_that_cannot_be_given(client, field, value):
    with pytest.raises(BadRequestError) as raised:
        client.completions.create(**{"model": "nano", "prompt": "x", field: value})
    assert raised.value.param == field


def test_what_is_too_long(client, served):
    with pytest.raises(BadRequestError, match="context"):
        client.chat.completions.create(model="nano", messages=[{"role": "user", "content": "What is 1 + 1? " * 5000}])
    with pytest.raises(BadRequestError, match="context"):
        client.completions.create(model="nano", prompt=[5] * (served.llm.engine.context + 1))


def test_what_is_not_there(client):
    for call in (
        lambda: client.responses.retrieve("resp_nobody"),
        lambda: client.responses.delete("resp_nobody"),
        lambda: client.responses.input_items.list("resp_nobody"),
        lambda: client.models.retrieve("openai/nobody"),
        lambda: client.embeddings.create(model="nano", input="x"),
        lambda: client.responses.create(model="nano", input="x", previous_response_id="resp_nobody"),
    ):
        with pytest.raises(NotFoundError) as raised:
            call()
        assert raised.value.body["message"]


def test_keys(served):
    with served.another(keys=("one", "two")) as url, served.watched() as (http, _):
        for key in ("", "on", "onee", "One"):
            with pytest.raises(AuthenticationError):
                OpenAI(base_url=url, api_key=key or "none", http_client=http, max_retries=0).models.list()
        assert OpenAI(base_url=url, api_key="two", http_client=http, max_retries=0).models.list().data
        assert http.get(url.removesuffix("/v1") + "/health").status_code == 200


def test_too_many_are_asked_to_come_again_and_the_library_does(served):
    """With room for few, all of many are answered in the end: the library tries again when it was told to."""
    with served.another(max_waiting=1) as url, served.watched() as (http, wire):
        patient = OpenAI(base_url=url, api_key="none", http_client=http, max_retries=30)
        hasty = OpenAI(base_url=url, api_key="none", http_client=http, max_retries=0)
        found, refusals = [], []

        def ask(client: OpenAI, seed: int) -> None:
            try:
                client.chat.completions.create(model="nano", messages=SUM, n=4, max_tokens=300, temperature=2, seed=seed)
                found.append(client)
            except RateLimitError as error:
                refusals.append(error)

        clients = [patient, hasty, hasty] * 3
        threads = [threading.Thread(target=ask, args=(client, i)) for i, client in enumerate(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found.count(patient) == 3 and len(found) + len(refusals) == len(clients)
        refused = [exchange for exchange in wire.exchanges if exchange.status == 429]
        assert refused and all(float(exchange.headers["retry-after"]) > 0 for exchange in refused)
