"""GET /: the chat page, one file that loads nothing and asks nobody but the server that it came from."""

import base64
import functools
import hashlib
from pathlib import Path
import re

from starlette.requests import Request
from starlette.responses import Response

FILE = Path(__file__).with_name("page.html")


def page(request: Request) -> Response:
    """The page; 304 for a browser that has it."""
    content, headers = _page()
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if headers["ETag"] in known:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="text/html", headers=headers)


@functools.cache
def _page() -> tuple[bytes, dict[str, str]]:
    """The file and its headers: the browser runs the script and takes the style that are in it, and no others."""
    content = FILE.read_bytes()
    policy = {
        "default-src": "'none'",
        "script-src": _digest_of("script", content),
        "style-src": _digest_of("style", content),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return content, {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Cache-Control": "no-cache",
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _digest_of(tag: str, content: bytes) -> str:
    """What Content-Security-Policy calls the one element of that name."""
    [text] = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), content, re.S)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
