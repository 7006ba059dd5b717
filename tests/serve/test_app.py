"""The server's app without a model: keys, unknown places, what is said before a model is there, who may come in, what is kept."""

from concurrent.futures import wait
import json
import re
import threading
from types import SimpleNamespace

from byte_tokenizer import ByteTokenizer
import pytest
from starlette.testclient import TestClient

from gptoss_jax.openai.errors import Refused
from gptoss_jax.serve.app import app
from gptoss_jax.serve.connections import bodies
from gptoss_jax.serve.connections.gate import Gate
from gptoss_jax.serve.service import Service
from gptoss_jax.serve.settings import Settings
from gptoss_jax.serve.stored import Stored, made


def client(**settings) -> TestClient:
    return TestClient(app(Service(Settings("org/nano", **settings))), raise_server_exceptions=False)


def error_of(response) -> dict:
    """Its error, all four keys of it."""
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and response.headers["x-request-id"]
    return error


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/completions", "/tokenize", "/detokenize"])
def test_until_there_is_a_model_everyone_is_told_to_come_again(path):
    answer = client().post(path, json={})
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0 and error_of(answer)["code"] == "loading"
    assert client().get("/health").status_code == 503 and client().get("/metrics").status_code == 200


def test_unknown_places_and_methods_are_said_in_the_same_form():
    assert error_of(client().get("/v1/nothing"))["code"] == "not_found"
    answer = client().put("/v1/responses/resp_1")
    assert answer.status_code == 405 and error_of(answer)["code"] == "method_not_allowed" and "DELETE" in answer.headers["allow"]
    assert error_of(client().get("/v1/responses/resp_1"))["code"] == "response_not_found"
    assert error_of(client().get("/v1/models/gpt-9"))["code"] == "model_not_found"
    assert client().get("/v1/models/org/nano").json()["id"] == "org/nano"


@pytest.mark.parametrize("header", [None, "Bearer three", "Bearer ", "Basic one", "one", "Bearer onetwo", "Bearer \u00fc"])
def test_without_a_key_nothing_is_said(header):
    given = {} if header is None else {"authorization": header.encode("latin-1")}
    answer = client(keys=("one", "two")).get("/v1/models", headers=given)
    assert answer.status_code == 401 and error_of(answer)["type"] == "authentication_error"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_any_of_the_keys_opens():
    for key in ("one", "two"):
        assert client(keys=("one", "two")).get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
    assert client(keys=("one",)).get("/").status_code == 200


def test_request_ids_come_back_where_they_are_plain():
    assert client().get("/v1/models", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert client().get("/v1/models", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"


def test_other_pages_may_ask_only_where_they_are_named():
    asked = {"origin": "https://a.example", "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    assert "access-control-allow-origin" not in client().options("/v1/models", headers=asked).headers
    named = client(cors_origins=("https://a.example",), keys=("one",))
    assert named.options("/v1/models", headers=asked).headers["access-control-allow-origin"] == "https://a.example"
    assert named.get("/v1/models", headers=asked).headers["access-control-allow-origin"] == "https://a.example"  # also a refusal's


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"NaN", b'{"a": NaN}', b'{"a": 1e999}', b"\xff{}", b"[" * 5000, b'"\\ud800"'])
def test_what_is_no_json_object_is_refused(body):
    with pytest.raises(Refused) as refused:
        bodies.value_of(body)
    assert refused.value.status == 400 and refused.value.code == "invalid_json"


def with_llm(**settings) -> Service:
    """A service over no more of an LLM than its tokenizer."""
    engine = SimpleNamespace(slots=1, context=64, asleep=False)
    return Service(Settings("nano", **settings), SimpleNamespace(tokenizer=ByteTokenizer(), engine=engine, adapters={}))


def test_while_the_model_sleeps_it_says_so_and_takes_nothing():
    service = with_llm()
    service.llm.engine.asleep = True
    for answer in (TestClient(app(service)).get("/health"), TestClient(app(service)).post("/v1/chat/completions", json={"messages": []})):
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0 and error_of(answer)["code"] == "asleep"


def test_each_token_is_spelled_once(monkeypatch):
    spelled, spell = [], ByteTokenizer.decode_bytes
    monkeypatch.setattr(ByteTokenizer, "decode_bytes", lambda self, ids: spelled.append(ids) or spell(self, ids))
    answer = TestClient(app(with_llm())).post("/tokenize", json={"prompt": "ab" * 5000, "return_token_strs": True}).json()
    assert answer["token_strs"] == ["a", "b"] * 5000 and len(spelled) <= 4


def test_long_texts_that_are_tokenized_keep_no_other_body_waiting():
    service, go_on = with_llm(), threading.Event()
    busy = [service.spellers.submit(go_on.wait, 60) for _ in range(8)]
    try:
        assert TestClient(app(service)).post("/v1/chat/completions", content=b"[" * 60_000).status_code == 400
        assert service.writers.submit(int).result(30) == 0 and not any(one.done() for one in busy)
    finally:
        go_on.set()
        wait(busy)


def test_values_of_the_wrong_kind_are_said_in_json_s_words():
    with pytest.raises(Refused, match="got null;"):
        bodies.value_of(b"null")
    with pytest.raises(Refused, match="got true;"):
        Service(Settings("nano")).check_model(True)


def test_a_gate_counts_answers_and_bytes():
    gate = Gate(3, 10)
    with gate.entered() as first:
        first.take(1)
        with gate.entered() as second:
            with pytest.raises(Refused, match="3 answers"):
                second.take(1)
            second.hold(8)
            with pytest.raises(Refused) as refused:
                first.hold(3)
            assert refused.value.status == 429
    assert gate.answers == gate.bytes == 0
    with gate.entered() as alone:
        alone.take(100)
        with pytest.raises(Refused) as refused:
            alone.take(100)
        assert refused.value.status == 400 and refused.value.field == "prompt"
    gate.closed = True
    with pytest.raises(Refused) as refused, gate.entered():
        pass
    assert refused.value.status == 503 and gate.answers == 0


def response(name: str, text: str) -> dict:
    return {"id": name, "output": [{"id": f"msg_{name}", "type": "message", "content": text}]}


def test_the_oldest_responses_are_forgotten():
    stored = Stored(3, 10**6)
    for i in range(5):
        stored.keep(made(response(f"r{i}", "a"), [{"id": f"in_{i}", "type": "message"}], stored.items(f"r{i - 1}") or ()))
    assert len(stored) == 3 and stored.items("r1") is None and len(stored.items("r4")) == 10  # what it went on from is still its own
    assert stored.item("in_4") and stored.item("msg_r4") and stored.item("in_0") is None
    assert stored.forget("r4") and not stored.forget("r4") and stored.item("in_4") is None


def test_no_item_is_found_by_an_id_that_a_client_gave_it():
    stored, mine = Stored(9, 10**6), {"id": "msg_1", "type": "message", "content": "mine"}
    stored.keep(made(response("a", "a"), [mine]), own=["msg_1"])
    assert stored.item("msg_1") is None and stored.get("a").given == (mine,)
    stored.keep(made(response("b", "b"), [stored.item("msg_a")]), own=["msg_a"])  # one that is the server's, sent back
    stored.keep(made(response("c", "c"), [{**stored.item("msg_a"), "content": "another"}]), own=["msg_a"])
    assert stored.forget("a") and stored.item("msg_a")["content"] == "a"
    assert stored.forget("b") and stored.item("msg_a") is None
    assert stored.forget("c") and not stored._places


def test_a_response_that_continued_an_item_ends_with_all_of_it():
    stored, item = Stored(9, 10**6), lambda name, text: {"id": name, "type": "message", "content": [{"type": "output_text", "text": text}]}
    stored.keep(made({"id": "a", "output": [item("msg_a", "85")]}, [item("in", "27 + 58 = ")], continued=True))
    assert stored.items("a") == (item("msg_a", "27 + 58 = 85"),) and stored.get("a").given == (item("in", "27 + 58 = "),)
    assert stored.item("msg_a") == item("msg_a", "85"), "what was answered"


def test_responses_are_kept_up_to_so_many_bytes():
    stored = Stored(100, 1000)
    for i in range(10):
        stored.keep(made(response(f"r{i}", "a" * 200), []))
    assert 0 < len(stored) < 5 and stored.bytes <= 1000
    stored.keep(made(response("huge", "a" * 2000), []))
    assert stored.get("huge") is None and len(stored)
    for i in range(10):
        stored.forget(f"r{i}")
    assert stored.bytes == 0 and json.dumps(stored._places) == "{}"


def test_how_the_chat_page_is_served():
    """It may run its own script and no other; a browser that has it is told so."""
    client = TestClient(app(Service(Settings("nano"))))
    first = client.get("/")
    policy = first.headers["content-security-policy"]
    assert first.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in policy and "unsafe" not in policy and "connect-src 'self'" in policy
    assert not re.search(r"(https?:)?//[a-z]", first.text), "nothing is loaded from elsewhere"
    again = client.get("/", headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert client.head("/").headers["etag"] == first.headers["etag"]
