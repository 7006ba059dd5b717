"""Keys: whoever has none of them is told so, and nothing else."""

import hashlib
import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from gptoss_jax.openai.errors import Refused

OPEN = ("/", "/health")  # the page asks for a key, and those that watch over processes have none


class Auth:
    """Lets through who has one of the keys."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]):
        self._app, self._keys = app, [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._keys and scope["path"] not in OPEN and not self._known(dict(scope["headers"]).get(b"authorization", b"")):
            raise Refused(
                'a key must be given, as "Authorization: Bearer KEY"; got none that is known here; ask whoever runs this server for one.',
                "invalid_api_key",
                status=401,
            )
        await self._app(scope, receive, send)

    def _known(self, header: bytes) -> bool:
        """Takes as long whichever key it is, and however much of it is right."""
        kind, _, key = header.partition(b" ")
        given = _digest(key.strip())
        found = [hmac.compare_digest(given, one) for one in self._keys]
        return kind.lower() == b"bearer" and any(found)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
