"""The server as users start it: a process of its own on nano, its address and its log; and raw connections to it."""

from collections.abc import Iterator
import contextlib
import json
import os
from pathlib import Path
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx


class Process:
    """A server that runs.

    Attributes:
      banner: the line that it printed once it was ready.
      url: its address.
      log: lines of standard error, so far.
    """

    def __init__(self, *flags: str):
        command = [sys.executable, "-m", "gptoss_jax.serve", "--port=0", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
        self.log: list[str] = []
        self._reader = threading.Thread(target=lambda: self.log.extend(iter(self.process.stderr.readline, "")), daemon=True)
        self._reader.start()
        self.banner = self.process.stdout.readline()
        assert self.banner, "".join(self.log)
        self.url = re.search(r"http://[0-9.]+:\d+", self.banner)[0]
        self.port = int(self.url.rpartition(":")[2])

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ended(self, seconds: float = 120) -> int:
        """Its exit status."""
        status = self.process.wait(seconds)
        self._reader.join(10)
        return status

    def number(self, name: str) -> float:
        """A sample of /metrics without other labels than the model's."""
        text = httpx.get(f"{self.url}/metrics", timeout=60).text
        return float(re.search(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.M)[1])

    def idle(self, seconds: float = 60) -> bool:
        """Whether within so many seconds nothing runs or waits, and no page is taken."""
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        return until(lambda: not any(map(self.number, names)), seconds)

    def files(self) -> int:
        """Of the process that are open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def memory(self) -> int:
        """Bytes that it has resident."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def connection(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


@contextlib.contextmanager
def served(*flags: str) -> Iterator[Process]:
    """A server that is ended at the end, one way or the other."""
    process = Process(*flags)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
        process.ended()
        process.process.stdout.close()
        process.process.stderr.close()


def until(holds, seconds: float = 60) -> bool:
    """Whether something comes to hold within so many seconds."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def post(path: str, body: object, *, headers: str = "") -> bytes:
    """A request as it stands on the wire."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Length: {len(text)}\r\n{headers}\r\n".encode() + text


def chat(content: str, **more) -> dict:
    return {"model": "nano", "messages": [{"role": "user", "content": content}], **more}
