"""Who may speak to the front door, and where it may listen."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientConnectionError, ClientSession, web
from aiohttp.test_utils import TestClient, TestServer

from tenkaigen_worker.api.app import make_app
from tenkaigen_worker.api.hosts import AllowedHosts, refuse_open_door
from tenkaigen_worker.api.parts import Parts
from tenkaigen_worker.api.serve import serving
from tenkaigen_worker.config_api import ApiSettings
from tenkaigen_worker.errors import ConfigError

# Nothing behind the door is asked for here.
PARTS = Parts(None, None, None, None, None, None, None)  # type: ignore[arg-type]
CANCEL = "/api/generate/not-an-id/cancel"  # let in, it answers 400


@pytest.fixture
async def client() -> AsyncIterator[TestClient[Any, Any]]:
    settings = ApiSettings(allowed_hosts=("Shop.example",))
    async with TestClient(TestServer(make_app(PARTS, settings))) as client:
        yield client


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.9.9.9",
        "[::1]:8000",
        "shop.example",
        "SHOP.example:443",
    ],
)
async def test_known_hosts_are_answered(client: TestClient, host: str) -> None:
    assert (await client.get("/healthz", headers={"Host": host})).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "evil.example:127.0.0.1",
        "localhost@evil.example",
        "evil.example@localhost",
        "evil.example/localhost",
        "[localhost]",
        "192.168.0.7:8000",
        "169.254.169.254",
        "",
    ],
)
async def test_other_hosts_are_refused(client: TestClient, host: str) -> None:
    response = await client.get("/healthz", headers={"Host": host})
    assert response.status == 421
    body = await response.json(content_type="application/problem+json")
    assert body["code"] == "wrong_host"
    assert "api.allowed_hosts" in body["detail"]


async def test_a_request_without_a_host_is_refused(client: TestClient) -> None:
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert b" 421 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:8000", "https://shop.example"])
async def test_pages_of_known_hosts_may_write(client: TestClient, origin: str) -> None:
    assert (await client.post(CANCEL, headers={"Origin": origin})).status == 400


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "", "localhost", "file://localhost", "https://localhost@evil.example"]
)
async def test_pages_of_strangers_may_not_write(client: TestClient, origin: str) -> None:
    response = await client.post(CANCEL, headers={"Origin": origin})
    assert response.status == 403
    assert (await response.json(content_type="application/problem+json"))["code"] == "wrong_origin"
    assert "Access-Control-Allow-Origin" not in response.headers


async def test_reading_is_not_a_matter_of_origin(client: TestClient) -> None:
    assert (await client.get("/healthz", headers={"Origin": "https://evil.example"})).status == 200


def test_the_host_that_is_listened_on_is_known() -> None:
    assert AllowedHosts.of(ApiSettings(host="10.1.2.3", allow_remote=True)).allows("10.1.2.3:8000")
    assert not AllowedHosts.of(ApiSettings()).allows("10.1.2.3:8000")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.com"])
def test_it_does_not_listen_beyond_this_machine_unless_told_to(host: str) -> None:
    with pytest.raises(ConfigError, match=r"api\.allow_remote: true"):
        refuse_open_door(ApiSettings(host=host))
    refuse_open_door(ApiSettings(host=host, allow_remote=True))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.2"])
def test_this_machine_is_always_fine(host: str) -> None:
    refuse_open_door(ApiSettings(host=host))


async def test_it_serves_while_the_block_runs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tenkaigen.api")
    async with ClientSession() as session:
        async with serving(make_app(PARTS, ApiSettings()), ApiSettings(port=0)) as url:
            response = await session.get(f"{url}/healthz")
            assert response.status == 200
        with pytest.raises(ClientConnectionError):
            await session.get(f"{url}/healthz")
    started = caplog.records[0]
    assert (started.action, started.url) == ("api_started", url)  # type: ignore[attr-defined]


async def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}: .* api\.port$"):
            async with serving(web.Application(), ApiSettings(port=port)):
                pass


async def test_an_address_of_another_machine_is_named() -> None:
    settings = ApiSettings(host="203.0.113.7", port=0, allow_remote=True)
    with pytest.raises(ConfigError, match=r"203\.0\.113\.7:0: .*api\.host$"):
        async with serving(web.Application(), settings):
            pass


async def test_it_refuses_before_it_listens() -> None:
    with pytest.raises(ConfigError, match="allow_remote"):
        async with serving(web.Application(), ApiSettings(host="0.0.0.0", port=0)):
            pass
