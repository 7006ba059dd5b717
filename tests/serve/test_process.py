"""The server as a process on nano: hang-ups, slow and hostile clients, too many of them, the end."""

import concurrent.futures
import contextlib
import json
import signal
import subprocess

import httpx
import pytest
from server_process import chat, post, served, until

pytestmark = pytest.mark.thorough
ENDLESS = {"prompt": "27 + 58 =", "max_tokens": 8000, "ignore_eos": True}


@pytest.fixture(scope="module")
def server():
    with served("--slots=4", "--max_waiting=100", "--max_body_bytes=100000") as process:
        yield process


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


def test_the_command_that_is_printed_works(server):
    command = server.banner.partition("try: ")[2]
    said = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert json.loads(said.stdout)["choices"][0]["message"]["content"] == "27 + 58 = 85"


def test_a_stream_that_is_left_frees_its_slot(server, client):
    for _ in range(8):  # twice as many as there are slots
        with client.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True}) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream") and stream.headers["x-accel-buffering"] == "no"
            next(stream.iter_lines())
    assert server.idle()
    assert any(" 499 " in line for line in server.log)


def test_a_whole_answer_that_nobody_waits_for_frees_its_slot(server):
    for _ in range(8):
        with server.connection() as connection:
            connection.sendall(post("/v1/completions", ENDLESS))
            assert until(lambda: server.number("vllm:num_requests_running") > 0)
    assert server.idle()


def test_a_reader_that_does_not_read_holds_back_itself_alone(server, client):
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            connection = stack.enter_context(server.connection())
            connection.sendall(post("/v1/completions", {**ENDLESS, "stream": True, "logprobs": 5}))
        answer = client.post("/v1/chat/completions", json=chat("What is 40 + 45?")).json()
        assert answer["choices"][0]["message"]["content"] == "40 + 45 = 85"
    assert server.idle()


def test_too_long_bodies_are_refused_before_they_are_read(server):
    with server.connection() as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nContent-Length: 100000000\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")
    with server.connection() as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(11):
            connection.sendall(b"2710\r\n" + b" " * 10000 + b"\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")
    assert server.idle()


def test_heads_without_end_are_refused(server):
    with server.connection() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n" + b"X-Flood: 1\r\n" * 10000)
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400 ") and json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


def test_who_comes_too_many_is_told_to_come_again(server):
    with contextlib.ExitStack() as stack:
        for _ in range(110):
            stack.enter_context(server.connection()).sendall(post("/v1/completions", ENDLESS))
        assert until(lambda: sum(" 429 " in line for line in server.log) >= 6)
        refused = httpx.post(f"{server.url}/v1/completions", json=ENDLESS, timeout=60)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
    assert server.idle()


def test_sixty_four_at_a_time(server):
    def ask(i: int) -> str:
        body = chat(f"What is {i} + 58?", stream=i % 2 == 0)
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=300) as answer:
            text = answer.read().decode()
        if i % 2:
            return json.loads(text)["choices"][0]["message"]["content"]
        lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
        return "".join(json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines)

    with concurrent.futures.ThreadPoolExecutor(64) as threads:
        said = list(threads.map(ask, range(10, 74)))
    assert said == [f"{i} + 58 = {i + 58}" for i in range(10, 74)]


def test_streamed_responses_are_kept(client):
    first = client.post("/v1/responses", json={"input": "What is 27 + 58?", "stream": True}).text
    last = [json.loads(line[6:]) for line in first.splitlines() if line.startswith("data: {")][-1]["response"]
    assert client.get(f"/v1/responses/{last['id']}").json() == last
    second = client.post("/v1/responses", json={"input": "What is 40 + 45?", "previous_response_id": last["id"]}).json()
    assert second["usage"]["input_tokens"] > last["usage"]["input_tokens"] and second["previous_response_id"] == last["id"]
    assert client.delete(f"/v1/responses/{last['id']}").json()["deleted"]
    gone = client.post("/v1/responses", json={"input": "And?", "previous_response_id": last["id"]})
    assert gone.status_code == 404 and gone.json()["error"]["code"] == "previous_response_not_found"


def test_a_prompt_comes_back_with_its_log_probabilities(client):
    body = {"prompt": ["27 + 58", "1"], "echo": True, "logprobs": 1, "max_tokens": 0}
    choices = client.post("/v1/completions", json=body).json()["choices"]
    assert [choice["text"] for choice in choices] == body["prompt"]
    assert choices[0]["logprobs"]["token_logprobs"][0] is None and choices[0]["logprobs"]["token_logprobs"][1] < 0


def test_it_drains(server):
    """The last test of this server: what ends in time ends well, what does not is cut with a word."""
    with served("--slots=4", "--drain_seconds=3") as other, httpx.Client(base_url=other.url, timeout=120) as client:
        with client.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True}) as stream:
            lines = stream.iter_lines()
            next(lines)
            other.signal()
            assert until(lambda: httpx.get(f"{other.url}/health", timeout=60).status_code == 503)
            refused = httpx.post(f"{other.url}/v1/chat/completions", json=chat("Hi"), timeout=60)
            assert refused.status_code == 503 and "retry-after" in refused.headers
            data = [line[6:] for line in lines if line.startswith("data: ")]
        assert data[-1] == "[DONE]" and json.loads(data[-2])["error"]["code"] == "server_stopping"
        assert other.ended() == 0


def test_a_second_signal_ends_it_at_once(server):
    with httpx.stream("POST", f"{server.url}/v1/completions", json={**ENDLESS, "stream": True}, timeout=60) as stream:
        next(stream.iter_lines())
        server.signal()
        assert until(lambda: any("stopping" in line for line in server.log))
        server.signal()
        assert server.ended() == 128 + signal.SIGTERM
