"""The load generator: its arithmetic on canned times, what it draws, and what it reads off the wire of a server that says anything."""

import asyncio
import contextlib
import json
import math

from absl import app, flags
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from benchmarks import serving
from benchmarks.load import asking, figures, wire, work
from benchmarks.load.figures import Timing

CANNED = [
    Timing(10.0, [10.5, 10.6, 10.8], 11.0, prompt_tokens=7, output_tokens=6),
    Timing(10.0, [11.0], 11.0, prompt_tokens=3, output_tokens=1),
    Timing(11.0, [11.1, 12.1], 12.1),  # the server did not count
    Timing(10.2, error="status 500"),
]


def test_columns_of_canned_times():
    found = figures.figures(CANNED, 4.0, goodput={"ttft": 600, "tpot": 500}, percentiles=(50, 99))
    assert (found["completed"], found["failed"], found["total_input_tokens"], found["total_output_tokens"]) == (3, 1, 10, 9)
    assert found["request_throughput"] == 3 / 4 and found["output_throughput"] == 9 / 4 and found["total_token_throughput"] == 19 / 4
    assert found["request_goodput"] == 1 / 4  # one's first token came late, another's second
    assert found["mean_ttft_ms"] == pytest.approx(1600 / 3) and found["median_ttft_ms"] == found["p50_ttft_ms"] == pytest.approx(500)
    assert found["mean_tpot_ms"] == pytest.approx((100 + 1000) / 2)  # (1.0 - 0.5) / 5 and 1.0 / 1; an answer of one token has none
    assert found["mean_itl_ms"] == pytest.approx((100 + 200 + 1000) / 3) and found["worst_silence_ms"] == pytest.approx(1000)
    assert found["median_e2el_ms"] == pytest.approx(1000) and found["p99_e2el_ms"] == pytest.approx(1098)
    assert found["max_concurrent_requests"] == 2  # the third begins when the others end
    text = figures.table(found, (50, 99))
    assert "Successful requests:" in text and "P99 TTFT (ms):" in text and "goodput" in text and "nan" not in text


def test_columns_where_nothing_was_answered():
    found = figures.figures(CANNED[3:], 1.0)
    assert (found["completed"], found["failed"], found["output_throughput"], found["mean_ttft_ms"]) == (0, 1, 0, 0)
    assert found["request_goodput"] is None and "goodput" not in figures.table(found)


@pytest.mark.parametrize("word", ["ttft", "itl:5", "ttft:-1", "ttft:nan", "tpot:x", ""])
def test_limits_that_are_none(word):
    with pytest.raises(ValueError, match="goodput must be of"):
        figures.limits([word])


@given(st.integers(1, 300), st.floats(0, 0.99), st.integers(0, 2**32))
def test_lengths_lie_around_their_mean(mean, ratio, seed):
    drawn = work.lengths(mean, ratio, 50, np.random.default_rng(seed))
    assert min(drawn) >= max(1, math.floor(mean * (1 - ratio))) and max(drawn) <= math.ceil(mean * (1 + ratio))


def test_prompts_are_drawn_by_their_seed():
    draw = lambda seed: work.random_prompts(20, input_len=30, output_len=10, range_ratio=0.5, prefix_len=8, seed=seed)
    prompts = draw(1)
    assert prompts == draw(1) != draw(2)
    texts = [one.messages[0]["content"].split() for one in prompts]
    assert len({tuple(text[:8]) for text in texts}) == 1 and [len(text) for text in texts] == [one.words for one in prompts]
    assert all(5 <= one.most <= 15 and 15 <= one.words - 8 <= 45 for one in prompts)
    assert len({one.most for one in prompts}) > 3 < len({one.words for one in prompts})


@given(st.integers(1, 100), st.floats(0.1, 1000), st.sampled_from([0.2, 1.0, 5.0, math.inf]), st.integers(0, 2**32))
def test_arrivals_keep_their_rate(count, rate, burstiness, seed):
    moments = work.arrivals(count, rate, burstiness, seed)
    assert len(moments) == count and moments == sorted(moments) and moments[0] >= 0
    assert moments[-1] == pytest.approx(count / rate)  # stretched, as vLLM does
    assert work.arrivals(count, math.inf) == [0.0] * count


def test_burstier_is_burstier():
    spread = lambda burstiness: float(np.std(np.diff(work.arrivals(500, 10, burstiness, 0))))
    assert spread(math.inf) < 1e-9 < spread(10) < spread(1) < spread(0.1)


def test_datasets(tmp_path):
    lines, shared, odd = tmp_path / "lines.jsonl", tmp_path / "shared.json", tmp_path / "odd.jsonl"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}]
    lines.write_text('{"prompt": "one two", "output_tokens": 9}\n\n' + json.dumps({"messages": messages}) + "\n")
    drawn = work.read_prompts(lines, 5)
    assert len(drawn) == 5 and set(map(id, drawn[:2])) == set(map(id, drawn[2:4]))  # no repeats until there are no more
    assert {(one.most, one.words) for one in drawn} == {(9, 2), (None, 4)}
    assert {one.most for one in work.read_prompts(lines, 2, output_len=3)} == {3}
    talk = [{"from": "human", "value": "How are you"}, {"from": "gpt", "value": "Well"}]
    shared.write_text(json.dumps([{"conversations": talk}, {"conversations": talk[:1]}, {}]))
    assert work.read_prompts(shared, 1) == [work.Prompt(({"role": "user", "content": "How are you"},), 1, 3)]
    for text, message in {
        "{}": "has neither",
        "no": "a JSON object a line",
        '{"messages": [3]}': "has neither",
        "[]": "has none",
        '[{"conversations": [3, 4]}]': "a turn of",
    }.items():
        odd.write_text(text)
        with pytest.raises(ValueError, match=message):
            work.read_prompts(odd, 1)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.data())
def test_chunks_come_out_however_they_are_cut(parts, data):
    whole = b"".join(b"%x;odd=1\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    chunks, out = wire.Chunks(), b""
    for first, last in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        out += chunks.feed(whole[first:last])
    assert out == b"".join(parts) and chunks.over


def chat(delta=None, reason=None, **more):
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
    return {"object": "chat.completion.chunk", "choices": choices} | more


USAGE = {"prompt_tokens": 11, "completion_tokens": 6}
SCRIPTS = {
    "chat": [
        chat({"role": "assistant", "content": ""}),
        chat({"reasoning": "hm", "reasoning_content": "hm"}),
        chat({"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}),
        chat({"content": "four"}),
        chat({}, "stop"),
        chat(usage=USAGE),
        "[DONE]",
    ],
    "completions": [
        {"choices": [{"text": "two "}]},
        {"choices": [{"text": "words", "finish_reason": "stop"}]},
        {"choices": [], "usage": USAGE},
        "[DONE]",
    ],
    "responses": [
        {"type": "response.created", "response": {"usage": None, "error": None}},
        {"type": "response.reasoning_text.delta", "delta": "hm"},
        {"type": "response.output_text.delta", "delta": "four"},
        {"type": "response.output_text.done", "text": "four"},
        {"type": "response.completed", "response": {"error": None, "usage": {"input_tokens": 11, "output_tokens": 6}}},
        "[DONE]",
    ],
}


class Fake:
    """A server that says what a script says, in chunks that are cut anywhere; "/models" has one named "some/model".

    Attributes:
      asked: heads and bodies that came.
      open: connections that are.
      most: of them at once.
    """

    def __init__(self, script=(), status="200 OK", *, wait: float = 0.0):
        self.script, self.status, self.wait = script, status, wait
        self.asked, self.open, self.most, self.left = [], 0, 0, 0

    @contextlib.asynccontextmanager
    async def running(self):
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        async with server:
            yield wire.Server(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/", api_key="secret")

    async def serve(self, reader, writer):
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("Content-Length")), 0)
            self.asked.append((head, await reader.readexactly(length)))
            if head.startswith("GET /v1/models "):
                data = b'{"data": [{"id": "some/model"}]}'
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
                return
            writer.write(f"HTTP/1.1 {self.status}\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n".encode())
            events = b": keep-alive\n\n"
            for event in self.script:
                events += b"data: " + (event if isinstance(event, str) else json.dumps(event)).encode() + b"\n\n"
                if self.wait:
                    writer.write(b"%x\r\n%s\r\n" % (len(events), events))
                    await writer.drain()
                    await asyncio.sleep(self.wait)
                    events = b""
            for start in range(0, len(events), 37):
                part = events[start : start + 37]
                writer.write(b"%x\r\n%s\r\n" % (len(part), part))
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        except ConnectionError:
            self.left += 1
        finally:
            self.open -= 1
            writer.close()


def ask(script, endpoint="chat", status="200 OK", **options):
    async def asked():
        async with Fake(script, status).running() as server:
            return await asking.ask(server, endpoint, {"stream": True}, **options)

    return asyncio.run(asked())


@pytest.mark.parametrize("endpoint", SCRIPTS)
def test_a_stream_is_read(endpoint):
    timing = ask(SCRIPTS[endpoint], endpoint)
    assert not timing.error and (timing.prompt_tokens, timing.output_tokens) == (11, 6)
    assert timing.text == {"chat": 'hm{"a"four', "completions": "two words", "responses": "hmfour"}[endpoint]
    assert len(timing.arrivals) == {"chat": 3, "completions": 2, "responses": 2}[endpoint]  # a role alone is no token
    assert timing.began <= timing.arrivals[0] <= timing.arrivals[-1] <= timing.ended


@pytest.mark.parametrize(
    ("script", "status", "error"),
    [
        (["what is said"], "429 Too Many Requests", "status 429: "),
        (SCRIPTS["chat"][:-1], "200 OK", "without its last event"),
        ([chat({"role": "assistant"}), "[DONE]"], "200 OK", "no chunk had any text"),
        ([chat({"content": "a"}), {"error": {"message": "the engine failed"}}], "200 OK", "the engine failed"),
        (["{"], "200 OK", "JSONDecodeError"),
    ],
)
def test_what_goes_wrong_is_said(script, status, error):
    assert error in ask(script, status=status).error


def test_nobody_there():
    timing = asyncio.run(asking.ask(wire.Server("http://127.0.0.1:1/v1"), "chat", {}))
    assert "Error" in timing.error and not timing.arrivals
    for url in ("127.0.0.1:8000", "ftp://a", "http://", ""):
        with pytest.raises(ValueError, match="base_url must be of http"):
            wire.Server(url)


def test_a_client_that_leaves():
    fake = Fake([chat({"content": "a"})] * 1000, wait=0.001)

    async def leave():
        async with fake.running() as server:
            timing = await asking.ask(server, "chat", {}, leave_after=3)
            while fake.open:
                await asyncio.sleep(0.01)
            return timing

    timing = asyncio.run(asyncio.wait_for(leave(), 60))
    assert timing.text == "aaa" and not timing.error and fake.left == 1


def run(fake, *arguments):
    given = flags.FlagValues()
    serving.define_flags(given)

    async def go():
        async with fake.running() as server:
            given(["serving", f"--base_url={server.base_url}", *arguments])
            return await asyncio.to_thread(serving.main, [], given)

    return asyncio.run(go())


def test_a_whole_run(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    fake, out = Fake(SCRIPTS["chat"], wait=0.001), tmp_path / "out.json"
    options = ["--max_concurrency=2", "--ignore_eos", '--extra_body={"temperature": 0}', "--goodput=ttft:60000"]
    assert run(fake, "--num_prompts=7", "--random_input_len=5", "--random_output_len=4", f"--json={out}", *options) == 0
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(printed[-1])
    assert (result["completed"], result["failed"], result["model"]) == (7, 0, "some/model")
    assert result["total_output_tokens"] == 42 and result["request_goodput"] == result["request_throughput"]
    assert any(line.startswith("Mean TTFT (ms):") for line in printed)
    head, body = fake.asked[-1]
    assert head.startswith("POST /v1/chat/completions HTTP/1.1\r\n") and "Authorization: Bearer secret" in head
    body = json.loads(body)
    assert body["max_completion_tokens"] == 4 and body["ignore_eos"] and body["temperature"] == 0 and body["stream_options"]
    assert fake.most <= 2 and json.loads(out.read_text())["output_lens"] == [6] * 7


def test_a_run_that_fails_says_so(capsys):
    assert run(Fake(status="500 Oh"), "--num_prompts=2") == 1
    assert "failed: status 500" in capsys.readouterr().err
    for arguments in (["--goodput=x"], ["--dataset=/no/such/file"], ["--extra_body=[]"], ["--extra_body={"]):
        assert run(Fake(), *arguments) == 1
        assert "error: " in capsys.readouterr().err
    with pytest.raises(app.UsageError):
        run(Fake(), "--request_rate=0")


@pytest.mark.parametrize("endpoint", work.PATHS)
def test_bodies(endpoint):
    prompt = work.Prompt(({"role": "user", "content": "hello"},), 5, 1)
    body = work.body(endpoint, prompt, model="m", more={"seed": 3})
    assert body["stream"] is True and body["model"] == "m" and body["seed"] == 3
    names = {"chat": "max_completion_tokens", "completions": "max_tokens", "responses": "max_output_tokens"}
    assert body[names[endpoint]] == 5
    assert names[endpoint] not in work.body(endpoint, work.Prompt(prompt.messages, None, 1), model="m")
