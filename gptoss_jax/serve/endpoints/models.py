"""GET /v1/models, /v1/models/{id}, /health: what is served, and whether it is."""

import time

from starlette.requests import Request
from starlette.responses import Response

from gptoss_jax.serve.connections import wire
from gptoss_jax.serve.service import Service


class Models:
    """The one model of a server, and the adapters beside it, each by its name as a model."""

    def __init__(self, service: Service):
        self._service, self._since = service, int(time.time())

    async def all(self, request: Request) -> Response:
        return wire.response({"object": "list", "data": [self._model(name) for name in self._names()]})

    async def one(self, request: Request) -> Response:
        if (name := request.path_params["name"]) not in self._names():
            raise self._service.no_such_model(name)
        return wire.response(self._model(name))

    async def health(self, request: Request) -> Response:
        """200 while requests are answered. Raises Refused, 503, before and after."""
        self._service.ready().engine.check_awake()
        return wire.response({"status": "ok"})

    def _names(self) -> tuple[str, ...]:
        own, llm = self._service.settings.name, self._service.llm
        return (own, *(name for name in (() if llm is None else llm.adapters) if name != own))

    def _model(self, name: str) -> dict:
        own, llm = self._service.settings.name, self._service.llm
        length = None if llm is None else llm.engine.context
        told = {"id": name, "object": "model", "created": self._since, "owned_by": "gptoss_jax", "root": own, "max_model_len": length}
        return told if name == own else told | {"parent": own}
