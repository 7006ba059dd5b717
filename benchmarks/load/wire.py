"""HTTP/1.1 and server-sent events over asyncio's streams: a request's head and body out, what its data lines hold in, as it comes."""

import asyncio
from collections.abc import AsyncIterator, Mapping
import contextlib
import dataclasses
import json
import ssl
import time
from urllib.parse import urlsplit

from gptoss_jax.quoting import quoted

_MOST = 1 << 16  # bytes that are read at a time


@dataclasses.dataclass(frozen=True)
class Server:
    """Where to ask: `base_url` such as "http://127.0.0.1:8000/v1", and what is sent along."""

    base_url: str
    api_key: str | None = None

    def __post_init__(self):
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url must be of http or https; got {quoted(self.base_url)}; pass one such as http://127.0.0.1:8000/v1.")

    def path(self, endpoint: str) -> str:
        return f"{urlsplit(self.base_url).path.rstrip('/')}/{endpoint}"

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(self.base_url)
        secure = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (443 if secure else 80)
        return await asyncio.open_connection(parts.hostname, port, ssl=secure, limit=1 << 20)

    def head(self, method: str, path: str, length: int) -> bytes:
        """Of a request with so many bytes after it, and no other one on its connection."""
        fields = {"Host": urlsplit(self.base_url).netloc.rpartition("@")[2], "Connection": "close", "Accept": "*/*"}
        fields |= {"Content-Type": "application/json", "Content-Length": str(length)} if length else {}
        fields |= {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Answer:
    """An answer whose head has been read.

    Attributes:
      status: of HTTP.
      headers: by names in small letters.
    """

    def __init__(self, reader: asyncio.StreamReader, head: bytes):
        first, *rest = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ", 2)[1])
        self.headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)}
        self._reader, self._left = reader, None
        self._chunks = Chunks() if self.headers.get("transfer-encoding", "").lower() == "chunked" else None
        if self._chunks is None and "content-length" in self.headers:
            self._left = int(self.headers["content-length"])

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises ConnectionError where it ends too soon."""
        while self._left != 0 and not (self._chunks and self._chunks.over):
            data = await self._reader.read(_MOST)
            if not data:
                if self._chunks is None and self._left is None:  # it ends with its connection
                    return
                raise ConnectionError("the connection ended before the answer did.")
            if self._left is not None:
                self._left -= len(data)
            data = self._chunks.feed(data) if self._chunks else data
            if data:
                yield data

    async def body(self) -> bytes:
        return b"".join([part async for part in self.parts()])

    async def events(self) -> AsyncIterator[tuple[float, bytes]]:
        """What each data line holds, and when it came, by `time.perf_counter`."""
        rest = b""
        async for part in self.parts():
            now = time.perf_counter()
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield now, line[5:].strip()


class Chunks:
    """Takes the sizes out of a chunked body.

    Attributes:
      over: the last chunk has come.
    """

    def __init__(self):
        self.over, self._rest, self._left = False, b"", 0  # of the chunk that has begun, its line end included

    def feed(self, data: bytes) -> bytes:
        """The next bytes of the body that these hold. Raises ValueError where a size is none."""
        data, out = self._rest + data, []
        while data and not self.over:
            if self._left == 0:
                line, found, after = data.partition(b"\r\n")
                if not found:
                    break
                size, data = int(line.split(b";")[0], 16), after
                self._left, self.over = size + 2, size == 0
            else:
                taken = data[: self._left]
                self._left -= len(taken)
                out.append(taken[: len(taken) - max(0, 2 - self._left)])
                data = data[len(taken) :]
        self._rest = data
        return b"".join(out)


@contextlib.asynccontextmanager
async def asked(server: Server, method: str, path: str, body: Mapping | bytes | None = None) -> AsyncIterator[Answer]:
    """Asks, on a connection of its own, which is closed where the block is left, whatever has come by then.

    Args:
      body: an object to be written as JSON, or bytes as they are.
    """
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    reader, writer = await server.connect()
    try:
        writer.write(server.head(method, path, len(data)) + data)
        await writer.drain()
        yield Answer(reader, await reader.readuntil(b"\r\n\r\n"))
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
