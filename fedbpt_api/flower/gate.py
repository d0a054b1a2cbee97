"""A coordinator's door: what nodes ask of the SuperLink is let through, nothing else is.

A SuperLink (flwr 1.41) takes commands at the port at which it takes nodes' messages, and from whoever reaches
it: list a key, start an app on every node, stop a run. So it listens on this machine alone, and parties reach
this gate. Whose key is not listed is still refused by the SuperLink, behind it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

ASKED: Final = frozenset(
    {
        "register-node",
        "activate-node",
        "deactivate-node",
        "unregister-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    }
)
"""What a node may ask for; each checks the node's key."""

_PATH = "/v1/fleet/"
_OWN: Final = frozenset({"host", "connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer"})


def gate(superlink: httpx.AsyncClient) -> Starlette:
    """The application, to be served with a certificate that parties trust.

    Args:
        superlink: Its base URL is the SuperLink's; closed with the application.
    """

    async def let_through(request: Request) -> Response:
        asked = request.path_params["asked"]
        if asked not in ASKED:
            return PlainTextResponse("nodes do not ask for that", 404)
        headers = [(k, v) for k, v in request.headers.raw if k.decode("latin-1").lower() not in _OWN]
        question = superlink.build_request("POST", _PATH + asked, headers=headers, content=request.stream())
        try:
            answer = await superlink.send(question, stream=True)
        except httpx.TransportError as error:  # nodes try again after that
            return PlainTextResponse(f"the SuperLink does not answer: {type(error).__name__}", 503)
        found = StreamingResponse(
            answer.aiter_raw(), answer.status_code, background=BackgroundTask(answer.aclose)
        )
        found.raw_headers = [(k, v) for k, v in answer.headers.raw if k.decode("latin-1").lower() not in _OWN]
        return found

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with superlink:
            yield

    return Starlette(routes=[Route(_PATH + "{asked}", let_through, methods=["POST"])], lifespan=lifespan)
