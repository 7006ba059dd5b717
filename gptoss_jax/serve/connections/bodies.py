"""Bodies of requests: read up to a limit of bytes and of time, then as JSON."""

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.types import Receive, Scope

from gptoss_jax import strict_json
from gptoss_jax.openai.errors import Refused
from gptoss_jax.quoting import quoted
from gptoss_jax.serve.connections.gate import Place


class Gone(Exception):
    """The client is; there is nobody to tell."""


async def read(scope: Scope, receive: Receive, place: Place, *, most: int, seconds: float) -> bytes:
    """The whole body.

    Raises:
        Refused: it is longer than `most`, found out before it is read where its length is said; or it takes too long to come.
        Gone: the client is.
    """
    if (said := dict(scope["headers"]).get(b"content-length", b"")).isdigit() and int(said[:30]) > most:
        raise _too_long(most)
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                part = message.get("body", b"")
                size += len(part)
                if size > most:
                    raise _too_long(most)
                place.hold(len(part))
                parts.append(part)
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        raise Refused(f"a body must come within {seconds:g} seconds; {size:,} bytes did; send it again.", "timeout", status=408) from None


def value_of(body: bytes) -> Mapping[str, Any]:
    """The JSON object that a body is. Raises Refused where it is none."""
    try:
        value = strict_json.loads(body.decode("utf-8-sig"))
    except ValueError as error:  # also where it is not UTF-8
        raise Refused(f"the body must be JSON in UTF-8; {str(error)[:200]}; send one object.", "invalid_json") from None
    if not isinstance(value, dict):
        raise Refused(f'the body must be a JSON object; got {quoted(value, json=True)}; send {{"model": ...}}.', "invalid_json")
    return value


def _too_long(most: int) -> Refused:
    return Refused(f"a body must have at most {most:,} bytes; this one has more (--max_body_bytes).", "body_too_large", status=413)
