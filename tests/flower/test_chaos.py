"""The harness that strikes federations (benchmarks/chaos.py): what it draws, and its network."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from chaos_net import Proxy
from chaos_plan import KINDS, bound, drawn
from fedbpt_api.flower.certificates import HOST

NAMES = ("a", "b", "c")


def test_strikes_follow_from_the_seed_and_cover_every_kind() -> None:
    plans = [drawn(0, number, 200.0, 60.0, NAMES) for number in range(30)]
    assert plans == [drawn(0, number, 200.0, 60.0, NAMES) for number in range(30)]
    assert plans != [drawn(1, number, 200.0, 60.0, NAMES) for number in range(30)]
    strikes = [strike for plan in plans for strike in plan]
    assert {strike.kind for strike in strikes} == set(KINDS)
    assert all(0 < strike.at < 200 and strike.lasts >= 1 for strike in strikes)
    assert all((strike.party in NAMES) != (strike.kind == "kill coordinator") for strike in strikes)
    frozen = [strike.lasts for strike in strikes if strike.kind == "freeze"]
    assert min(frozen) < 60.0 < max(frozen)  # for less and for more than the deadline


def test_the_time_that_a_run_has_follows_from_what_is_done_to_it() -> None:
    strikes = drawn(0, 0, 200.0, 60.0, NAMES)
    calm = bound(20, 60.0, [], 90.0)
    assert calm == 20 * 60.0 + 90.0
    again = sum(strike.kind == "kill coordinator" for strike in strikes)
    assert bound(20, 60.0, strikes, 90.0) == pytest.approx(calm + 90 * again + sum(s.lasts for s in strikes))


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[Proxy]:
    """A server that says what it hears, behind a proxy."""

    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    proxy = Proxy(server.sockets[0].getsockname()[1])
    try:
        yield proxy
    finally:
        proxy.close()
        server.close()
        await closed(*writers)


async def closed(*writers: asyncio.StreamWriter) -> None:
    """Close connections, and wait until they are."""
    for writer in writers:
        writer.close()
    await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def test_the_proxy_carries_holds_and_cuts() -> None:
    async with echo() as proxy:
        reader, writer = await asyncio.open_connection(HOST, proxy.port)
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        proxy.stall()
        writer.write(b"two")
        heard = asyncio.ensure_future(reader.readexactly(3))
        other = await asyncio.open_connection(HOST, proxy.port)  # the proxy has seen the stall by now
        assert not heard.done()
        proxy.mend()
        assert await heard == b"two"
        proxy.cut()
        with contextlib.suppress(ConnectionError):
            assert await reader.read(1) == b""
        late, hello = await asyncio.open_connection(HOST, proxy.port)
        hello.write(b"hello")
        assert await late.read() == b""  # taken, and closed in the middle of the handshake
        proxy.mend()
        back, said = await asyncio.open_connection(HOST, proxy.port)
        said.write(b"back")
        assert await back.readexactly(4) == b"back"
        await closed(writer, other[1], hello, said)
