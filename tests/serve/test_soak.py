"""Twenty minutes of mixed clients, some of which hang up, send nonsense, read slowly or send too much: nothing breaks, nothing is left.

pytest -n 0 -m slow -s tests/serve/test_soak.py                   SOAK_SECONDS=300 for a shorter one
"""

from collections import Counter
import json
import os
import random
import threading
import time

import httpx
import pytest
from server_process import Process, chat, post, served

pytestmark = pytest.mark.slow
SECONDS = float(os.environ.get("SOAK_SECONDS", 1200))
CLIENTS = 24
MOST_BYTES = 200_000


class Client:
    """One that does something else each time; what it was answered is counted."""

    def __init__(self, server: Process, number: int, seen: Counter):
        self.server, self.rng, self.seen = server, random.Random(number), seen
        self.http = httpx.Client(base_url=server.url, timeout=300)

    def run(self, until: float) -> None:
        ways = (self.whole, self.stream, self.response, self.leave, self.drop, self.malformed, self.slow, self.oversized, self.look)
        while time.monotonic() < until:
            way = self.rng.choice(ways)
            try:
                self.seen[f"{way.__name__} {way()}"] += 1
            except Exception as error:
                self.seen[f"{way.__name__} raised {error!r}"] += 1
        self.http.close()

    def question(self) -> str:
        return f"What is {self.rng.randrange(10, 99)} + {self.rng.randrange(10, 99)}?"

    def whole(self) -> int:
        return self.http.post("/v1/chat/completions", json=chat(self.question(), n=self.rng.randrange(1, 4))).status_code

    def stream(self) -> int:
        answer = self.http.post("/v1/chat/completions", json=chat(self.question(), stream=True))
        assert answer.status_code != 200 or answer.text.endswith("data: [DONE]\n\n") and '"error"' not in answer.text
        return answer.status_code

    def response(self) -> int:
        first = self.http.post("/v1/responses", json={"input": self.question()})
        if first.status_code == 200:
            more = {"input": self.question(), "previous_response_id": first.json()["id"], "stream": True}
            return self.http.post("/v1/responses", json=more).status_code
        return first.status_code

    def leave(self) -> int:
        body = {"prompt": self.question(), "max_tokens": 2000, "ignore_eos": True, "stream": True}
        with self.http.stream("POST", "/v1/completions", json=body) as answer:
            for _, _line in zip(range(self.rng.randrange(5)), answer.iter_lines(), strict=False):
                pass
            return answer.status_code

    def drop(self) -> str:
        """Hangs up in the middle of a request, or of the wait for its answer."""
        text = post("/v1/completions", {"prompt": self.question(), "max_tokens": 2000, "ignore_eos": True})
        with self.server.connection() as connection:
            connection.sendall(text[: self.rng.choice((20, len(text) - 5, len(text)))])
            time.sleep(self.rng.random())
        return "left"

    def malformed(self) -> int:
        body = self.rng.choice([b"", b"{", b"[]", b"\xff", b"[" * 9999, b'{"messages": 3}'])
        answer = self.http.post("/v1/" + self.rng.choice(["chat/completions", "responses", "completions"]), content=body)
        assert answer.status_code == 400 and answer.json()["error"].keys() == {"message", "type", "param", "code"}
        return answer.status_code

    def slow(self) -> str:
        body = {"prompt": self.question(), "max_tokens": 500, "ignore_eos": True, "stream": True, "logprobs": 5}
        with self.server.connection() as connection:
            connection.sendall(post("/v1/completions", body))
            for _ in range(self.rng.randrange(20)):
                connection.recv(256)
                time.sleep(0.1)
        return "read slowly"

    def oversized(self) -> int:
        return self.http.post("/v1/responses", content=b" " * (MOST_BYTES + self.rng.randrange(10**6))).status_code

    def look(self) -> int:
        return self.http.get(self.rng.choice(["/health", "/metrics", "/v1/models", "/nowhere", "/v1/responses/resp_1"])).status_code


def test_nothing_breaks_and_nothing_is_left():
    with served("--slots=8", f"--max_body_bytes={MOST_BYTES}", "--max_stored_bytes=2000000", "--log_level=warning") as server:
        seen: Counter = Counter()
        memory, files = [], []
        rounds = 4
        for _ in range(rounds):
            until = time.monotonic() + SECONDS / rounds
            clients = [Client(server, 100 * len(memory) + i, seen) for i in range(CLIENTS)]
            threads = [threading.Thread(target=client.run, args=(until,)) for client in clients]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert server.idle(120), seen
            memory.append(server.memory())
            files.append(server.files())
        print(json.dumps({"seen": dict(sorted(seen.items())), "memory": memory, "files": files}, indent=1))
        assert not [line for line in seen if "raised" in line or " 5" in line and " 503" not in line], seen
        assert max(files) <= files[0] + 5
        assert memory[-1] < 1.1 * memory[1], "memory grows"
        server.signal()
        assert server.ended() == 0
        assert not [line for line in server.log if "Traceback" in line or "Task" in line], "".join(server.log[-100:])
