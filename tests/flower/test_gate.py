"""The coordinator's door: nodes' questions pass as they are, and nothing else passes, however it is spelt."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fedbpt_api.flower.gate import ASKED, gate


@dataclass
class SuperLink:
    """What stands behind the gate; takes anything."""

    asked: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)

    def app(self) -> Starlette:
        async def take(request: Request) -> Response:
            self.asked.append((request.url.path, await request.body(), dict(request.headers)))
            return Response(b"\x00answer", 418, {"x-flwr": "told"})

        return Starlette(routes=[Route("/{rest:path}", take, methods=["GET", "POST", "PUT"])])


async def ask(app: Starlette, path: str, method: str = "POST", body: bytes = b"") -> tuple[int, bytes]:
    """Put a request as a server would that has read this path, dots and all."""
    sent: list[dict[str, object]] = []

    told: Iterator[dict[str, object]] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, object]:
        for message in told:
            return message
        return await asyncio.Future[dict[str, object]]()  # nothing more, while it is answered

    async def send(message: object) -> None:
        assert isinstance(message, dict)
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"coordinator"), (b"x-public-key", b"k"), (b"content-type", b"application/x")],
        "client": ("192.0.2.1", 5),
        "server": ("coordinator", 8000),
    }
    await app(scope, receive, send)
    body = b"".join(bytes(message.get("body", b"")) for message in sent)  # type: ignore[call-overload]
    return int(sent[0]["status"]), body  # type: ignore[call-overload]


def gated(superlink: SuperLink) -> Starlette:
    transport = httpx.ASGITransport(superlink.app())
    return gate(httpx.AsyncClient(transport=transport, base_url="https://inner"))


async def test_what_nodes_ask_passes_as_it_is() -> None:
    superlink = SuperLink()
    status, answer = await ask(gated(superlink), "/v1/fleet/push-messages", body=b"\xff" * 100_000)
    assert (status, answer) == (418, b"\x00answer")
    ((path, body, headers),) = superlink.asked
    assert (path, body) == ("/v1/fleet/push-messages", b"\xff" * 100_000)
    assert headers["x-public-key"] == "k" and headers["content-type"] == "application/x"
    assert headers["host"] == "inner"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/health",
        "/openapi.json",
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet",
        "/v1/fleet/",
        "/v1/fleet/..",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/..%2fcontrol%2fstart-run",
        "/v1/fleet/get-run/../../control/start-run",
        "/v1/fleet/get-run%2f..%2f..%2fcontrol%2fstart-run",
        "/v1/fleet/get-run?x=/v1/control/start-run%23",
        "/v1/fleet/get-run#/../control",
        "/v1/fleet/start-run",
        "/v1/fleet/GET-RUN",
        "//v1/control/start-run",
        "/v1//fleet/get-run",
    ],
)
async def test_nothing_else_passes(path: str) -> None:
    superlink = SuperLink()
    status, _ = await ask(gated(superlink), path)
    assert status in (404, 307) and not superlink.asked


async def test_nodes_only_post() -> None:
    superlink = SuperLink()
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        assert (await ask(gated(superlink), "/v1/fleet/get-run", method))[0] == 405
    assert not superlink.asked


async def test_a_superlink_that_is_away_is_a_reason_to_try_again() -> None:
    async def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    app = gate(httpx.AsyncClient(transport=httpx.MockTransport(away), base_url="https://inner"))
    assert (await ask(app, "/v1/fleet/get-run"))[0] == 503


def test_it_knows_all_that_flower_s_nodes_ask() -> None:
    pytest.importorskip("flwr")
    from flwr.superlink.routers.fleet.router import router

    assert {f"/v1/fleet/{asked}" for asked in ASKED} == {
        getattr(route, "path", "") for route in router.routes
    }
