"""POST /tokenize and /detokenize, GET /tokenizer_info: text to ids and back, in the shapes that vLLM has."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gptoss_jax.openai import reading
from gptoss_jax.openai.errors import Refused
from gptoss_jax.quoting import quoted
from gptoss_jax.serve.connections import bodies, wire
from gptoss_jax.serve.service import Service
from gptoss_jax.turns import tasks
from gptoss_jax.turns.prompts import ids_of

_SETTINGS = ("model", "add_special_tokens", "add_generation_prompt", "return_token_strs")


class Spelling:
    """One of the two POSTs, as an ASGI app.

    Args:
        back: ids to text, else text to ids.
    """

    def __init__(self, service: Service, *, back: bool):
        self._service, self._make = service, _text if back else _ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        llm, settings = self._service.ready(), self._service.settings
        with self._service.gate.entered() as place:
            body = await bodies.read(scope, receive, place, most=settings.max_body_bytes, seconds=settings.body_seconds)
            loop = asyncio.get_running_loop()
            await wire.answer(send, await loop.run_in_executor(self._service.spellers, self._answer, llm, body))

    def _answer(self, llm: Any, body: bytes) -> Mapping:
        value = {name: one for name, one in bodies.value_of(body).items() if one is not None}
        self._service.check_model(value.get("model"))
        return self._make(self._service, llm, value)


def _ids(service: Service, llm: Any, body: Mapping[str, Any]) -> Mapping:
    """Of a prompt as it stands, or of messages as they are rendered for an answer."""
    if ("prompt" in body) == ("messages" in body):
        raise Refused('a body must have either prompt or messages; pass {"prompt": "..."}.', field="prompt")
    for name in ("add_special_tokens", "add_generation_prompt", "return_token_strs"):
        if not isinstance(body.get(name), bool | None):
            raise Refused(f"{name} must be true or false; got {quoted(body[name], json=True)}.", field=name)
    if "prompt" in body:
        if not isinstance(body["prompt"], str):
            raise Refused(f"prompt must be a string; got {quoted(body['prompt'], json=True)}.", field="prompt")
        _known(service, body, "prompt")
        try:
            ids = ids_of(llm, body["prompt"]) if body["prompt"] else []
        except ValueError as error:
            raise Refused(str(error), field="prompt") from None
    else:
        if body.get("add_generation_prompt") is False:
            raise Refused(
                "add_generation_prompt must be true: messages are rendered to be answered; leave it out.", field="add_generation_prompt"
            )
        asked = reading.read("chat", _without(body), name="", reading=service.reading)
        try:
            ids = [int(one) for one in tasks.begin(llm, asked.tasks[0]).requests[0].prompt]
        except ValueError as error:
            raise reading.refusal(asked, str(error)) from None
    spelled = {one: _spelled(llm, [one]) for one in set(ids)} if body.get("return_token_strs") else None
    strings = None if spelled is None else [spelled[one] for one in ids]
    return {"count": len(ids), "max_model_len": llm.engine.context, "tokens": [int(one) for one in ids], "token_strs": strings}


def _text(service: Service, llm: Any, body: Mapping[str, Any]) -> Mapping:
    ids = body.get("tokens")
    if not isinstance(ids, list) or not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise Refused(f"tokens must be a list of token ids; got {quoted(ids, json=True)}.", field="tokens")
    _known(service, body, "tokens")
    most = llm.model.config.vocab_size
    if outside := [one for one in ids if not 0 <= one < most]:
        raise Refused(f"tokens must be ids from 0 to {most - 1:,}; got {quoted(outside[0])}.", field="tokens")
    return {"prompt": _spelled(llm, ids)}


class Info:
    """GET /tokenizer_info."""

    def __init__(self, service: Service):
        self._service = service

    async def get(self, request: Request) -> Response:
        llm = self._service.ready()
        special = dict(llm.tokenizer.special)
        names = {number: name for name, number in special.items()}
        ends = [names[one] for one in llm.model.eos_token_ids if one in names]
        known = {"tokenizer_class": type(llm.tokenizer).__name__, "vocab_size": llm.model.config.vocab_size}
        known |= {"model_max_length": llm.engine.context, "eos_token": ends[0] if ends else None, "special_tokens": special}
        return wire.response(known)


def _spelled(llm: Any, ids: Sequence[int]) -> str:
    """Text, control tokens by name; what is no UTF-8 is U+FFFD."""
    names = {number: name for name, number in llm.tokenizer.special.items()}
    parts, plain = [], []
    for one in ids:
        if one in names:
            parts += [llm.tokenizer.decode_bytes(plain), names[one].encode()]
            plain = []
        else:
            plain.append(one)
    return b"".join([*parts, llm.tokenizer.decode_bytes(plain)]).decode(errors="replace")


def _known(service: Service, body: Mapping, own: str) -> None:
    """Refuses, or notes, what is of no use here."""
    for name in sorted(set(body) - {*_SETTINGS, own}):
        if service.settings.strict:
            raise Refused(f"{quoted(name)} is not known here; remove it.", "unknown_field", name)
        service.notice(f"tokenize: field {quoted(name)} is ignored")


def _without(body: Mapping) -> dict:
    return {name: value for name, value in body.items() if name not in _SETTINGS}
