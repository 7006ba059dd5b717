"""The server as an ASGI app: its routes, and what stands around them. Pure ASGI: what goes out is never held back, a hang-up is seen."""

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from gptoss_jax.serve import metrics
from gptoss_jax.serve.connections.auth import Auth
from gptoss_jax.serve.connections.fence import Fenced, Logged
from gptoss_jax.serve.endpoints.answering import Answering
from gptoss_jax.serve.endpoints.kept import KeptResponses
from gptoss_jax.serve.endpoints.models import Models
from gptoss_jax.serve.endpoints.tokenize import Info, Spelling
from gptoss_jax.serve.page import page
from gptoss_jax.serve.service import Service


def app(service: Service) -> ASGIApp:
    """All of it."""
    models, kept = Models(service), KeptResponses(service)
    routes = [
        Route("/", page),
        Route("/health", models.health),
        Route("/metrics", metrics.endpoint(lambda: service.llm, service.settings.name)),
        Route("/v1/models", models.all),
        Route("/v1/models/{name:path}", models.one),
        Route("/v1/chat/completions", Answering(service, "chat"), methods=["POST"]),
        Route("/v1/completions", Answering(service, "completions"), methods=["POST"]),
        Route("/v1/responses", Answering(service, "responses"), methods=["POST"]),
        Route("/v1/responses/{name}/input_items", kept.input_items),
        Route("/v1/responses/{name}", kept.one, methods=["GET", "DELETE"]),
        Route("/tokenize", Spelling(service, back=False), methods=["POST"]),
        Route("/detokenize", Spelling(service, back=True), methods=["POST"]),
        Route("/tokenizer_info", Info(service).get),
    ]
    inner: ASGIApp = Fenced(Auth(Router(routes, redirect_slashes=False), service.settings.keys))
    if origins := service.settings.cors_origins:
        headers = {"allow_methods": ["*"], "allow_headers": ["*"], "expose_headers": ["x-request-id", "retry-after"]}
        inner = CORSMiddleware(inner, allow_origins=origins, **headers)
    return Logged(inner)
