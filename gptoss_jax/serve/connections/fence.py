"""Around every request: an id, a line in the log, and whatever is raised becomes OpenAI's error object and disturbs nobody else."""

import logging
import re
import time
import uuid

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptoss_jax.openai import errors
from gptoss_jax.openai.errors import INTERNAL, Refused
from gptoss_jax.quoting import quoted
from gptoss_jax.serve.connections import wire
from gptoss_jax.serve.connections.bodies import Gone

_log = logging.getLogger(__name__)
_ID = re.compile(rb"[!-~]{1,200}")
_RETRY = {429: "1", 503: "2"}  # seconds
_GONE = 499  # in the log alone: nobody was there to be told
SPENT = "gptoss_jax.spent"  # in a scope: tokens of prompts and answers


class Logged:
    """Names a request, by the id that it comes with if that is a plain one, and logs a line at its end. Bodies are never logged."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        name = given if _ID.fullmatch(given) else uuid.uuid4().hex.encode()
        scope["request_id"], status, begun = name.decode(), _GONE, time.monotonic()

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", name)]}
            await send(message)

        try:
            await self._app(scope, receive, named)
        finally:
            read, written = scope.get(SPENT, (0, 0))
            level = logging.DEBUG if scope["path"] in ("/health", "/metrics") and status == 200 else logging.INFO
            said = (scope["request_id"], scope["method"], quoted(scope["path"]), scope.get("outcome", status), read, written)
            _log.log(level, "%s %s %s %s in=%d out=%d %.3fs", *said, time.monotonic() - begun)


class Fenced:
    """Answers what is raised."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        scope["app"] = self  # Starlette raises what nobody answers, then
        try:
            await self._app(scope, receive, watched)
        except Gone:
            scope["outcome"] = _GONE
        except Exception as error:
            refusal, headers = _refusal(error, scope)
            if begun:  # too late to say so
                raise
            if refusal.status in _RETRY:
                headers["Retry-After"] = _RETRY[refusal.status]
            if refusal.status == 401:
                headers["WWW-Authenticate"] = "Bearer"
            await wire.answer(send, errors.body_of(refusal), refusal.status, headers)


def _refusal(error: Exception, scope: Scope) -> tuple[Refused, dict[str, str]]:
    """What is said, and headers."""
    if isinstance(error, Refused):
        return error, {}
    path = quoted(scope["path"])
    if isinstance(error, HTTPException) and error.status_code == 404:
        return Refused(f"{path} is unknown here; see GET /v1/models, POST /v1/chat/completions.", "not_found", status=404), {}
    if isinstance(error, HTTPException):
        text = f"{scope['method'][:20]} cannot be done to {path}; {error.detail}."
        return Refused(text, "method_not_allowed", status=error.status_code), dict(error.headers or {})
    return unforeseen(error, scope), {}


def unforeseen(error: Exception, scope: Scope) -> Refused:
    """Logs what nobody thought of; what the client is told of it."""
    _log.error("%s failed", scope["request_id"], exc_info=error)
    return Refused(f"the server failed at this request, {scope['request_id']}; the others go on; its log says how.", INTERNAL)
