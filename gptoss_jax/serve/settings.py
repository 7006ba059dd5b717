"""What a server is told when it starts. Data only."""

import dataclasses

NAME_MOST = 200


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of one server.

    Attributes:
        name: what the model is called.
        keys: any of which a client must give; none to serve everyone.
        strict: whether unknown fields and models are refused; else they are logged, and ignored.
        timeout: most seconds of a request, those of waiting too, until it is ended with what it has; None for no limit.
        temperature, max_tokens, reasoning_effort: for requests that do not say.
        max_waiting: answers that may wait for a slot; who comes then is told to come again.
        max_body_bytes: of one request. Four times as many are held of all that are being read.
        max_stored_bytes, max_stored: of responses that are kept; the oldest are forgotten.
        cors_origins: web pages that may ask; ("*",) for all.
        body_seconds: how long a body may take to come.
        silence_seconds: how long a stream may say nothing.
    """

    name: str
    keys: tuple[str, ...] = ()
    strict: bool = False
    timeout: float | None = None
    temperature: float = 1.0
    max_tokens: int | None = None
    reasoning_effort: str = "medium"
    max_waiting: int = 1024
    max_body_bytes: int = 16_000_000
    max_stored_bytes: int = 256_000_000
    max_stored: int = 10_000
    cors_origins: tuple[str, ...] = ()
    body_seconds: float = 60
    silence_seconds: float = 10
