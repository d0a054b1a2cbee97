"""What is found out of a server of OpenAI's kind, where it cannot be found out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import pytest

from fedbpt_api.errors import BackendError
from fedbpt_backends.openai_client import Client
from fedbpt_backends.openai_pilot import Pilot
from fedbpt_backends.openai_route import Route


class Failing(Pilot):
    """Its second request fails while the third is on its way."""

    asked = 0
    ended = False

    async def _ask(self, route: Route, text: str) -> tuple[dict[str, float], Mapping[str, Any]]:
        self.asked += 1
        match self.asked:
            case 1:
                return {" yes": -0.1}, {}
            case 2:
                await asyncio.sleep(0)
                raise BackendError("the server is gone")
        try:
            return await asyncio.Future()
        finally:
            self.ended = True


async def test_where_a_request_for_noise_fails_no_other_is_left_running() -> None:
    """Its client is closed next."""
    pilot = Failing(cast(Client, None), "m")
    with pytest.raises(BackendError, match="gone"):
        await pilot.noise(Route("completions", "m", 5))
    assert pilot.asked == 3 and pilot.ended
