"""GET /v1/models, /v1/models/{id}, /health: what is served, and whether it is."""

import time

from starlette.requests import Request
from starlette.responses import Response

from gptoss_jax.serve.connections import wire
from gptoss_jax.serve.service import Service


class Models:
    """The one model of a server."""

    def __init__(self, service: Service):
        self._service, self._since = service, int(time.time())

    async def all(self, request: Request) -> Response:
        return wire.response({"object": "list", "data": [self._model()]})

    async def one(self, request: Request) -> Response:
        if (name := request.path_params["name"]) != self._service.settings.name:
            raise self._service.no_such_model(name)
        return wire.response(self._model())

    async def health(self, request: Request) -> Response:
        """200 while requests are answered. Raises Refused, 503, before and after."""
        self._service.ready().engine.check_awake()
        return wire.response({"status": "ok"})

    def _model(self) -> dict:
        name, llm = self._service.settings.name, self._service.llm
        length = None if llm is None else llm.engine.context
        return {"id": name, "object": "model", "created": self._since, "owned_by": "gptoss_jax", "root": name, "max_model_len": length}
