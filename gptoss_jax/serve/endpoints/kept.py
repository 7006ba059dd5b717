"""GET and DELETE of /v1/responses/{id}, and of the items of its input."""

from starlette.requests import Request
from starlette.responses import Response

from gptoss_jax.openai.errors import Refused
from gptoss_jax.quoting import quoted
from gptoss_jax.serve.connections import wire
from gptoss_jax.serve.service import Service
from gptoss_jax.serve.stored import Kept

_MOST = 100  # items of a page


class KeptResponses:
    """Responses that are kept."""

    def __init__(self, service: Service):
        self._service = service

    async def one(self, request: Request) -> Response:
        """A response as it was answered, or, with DELETE, no more."""
        if request.method == "DELETE":
            return self._deleted(request)
        if request.query_params.get("stream", "false").lower() not in ("false", "0", ""):
            raise Refused("stream must be false for a response that is kept; its events are not; leave it out.", field="stream")
        return wire.response(self._found(request).body)

    async def input_items(self, request: Request) -> Response:
        """A page of them, newest first unless asked for otherwise."""
        items, asked = list(self._found(request).given), request.query_params
        order, limit = asked.get("order", "desc"), asked.get("limit", "20")
        if order not in ("asc", "desc"):
            raise Refused(f'order must be "asc" or "desc"; got {quoted(order)}; leave it out for the newest first.', field="order")
        if not (limit.isascii() and limit.isdigit() and len(limit) <= 3 and 1 <= int(limit) <= _MOST):
            raise Refused(f"limit must be a whole number from 1 to {_MOST}; got {quoted(limit)}; leave it out for 20.", field="limit")
        if order == "desc":
            items.reverse()
        if (after := asked.get("after")) is not None:
            places = [i for i, item in enumerate(items) if item.get("id") == after]
            if not places:
                raise Refused(
                    f"after must be the id of an item of this input; got {quoted(after)}; pass last_id of the page before.", field="after"
                )
            items = items[places[-1] + 1 :]
        page, more = items[: int(limit)], len(items) > int(limit)
        ends = {"first_id": page[0].get("id") if page else None, "last_id": page[-1].get("id") if page else None}
        return wire.response({"object": "list", "data": page, **ends, "has_more": more})

    def _deleted(self, request: Request) -> Response:
        name = self._found(request).body["id"]
        self._service.stored.forget(name)
        return wire.response({"id": name, "object": "response", "deleted": True})

    def _found(self, request: Request) -> Kept:
        name = request.path_params["name"]
        if (kept := self._service.stored.get(name)) is None:
            text = f"a response must be one that is kept; got {quoted(name)}, which is unknown, was deleted, forgotten, or never stored."
            raise Refused(text, "response_not_found", "response_id", status=404)
        return kept
