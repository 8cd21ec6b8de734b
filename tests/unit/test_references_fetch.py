"""Fetching pictures from other servers: allowed hosts, public addresses, limits; no way round by any form."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6, AddressFamily
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.test_utils import TestServer

from tenkaigen_worker.config import ReferenceSettings
from tenkaigen_worker.errors import Code, InfrastructureError
from tenkaigen_worker.references.addresses import is_public
from tenkaigen_worker.references.fetch import Fetcher

CERTIFICATE = Path(__file__).with_name("server.pem")
PICTURE = bytes(range(256)) * 40
SETTINGS = ReferenceSettings(allowed_hosts=("cdn.example.com", "*.pictures.example"), max_bytes=20_000)
PNG = "https://cdn.example.com/fox.png"


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_in_the_public_internet(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "ff0e::1"),
        *("2001:db8::1", "100::1", "5f00::1", "::7f00:1", "::a00:1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"),  # mapped
        *("64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::a00:1"),  # NAT64
        *("2002:7f00:1::", "2002:a00:1::1", "2002:808:808::1"),  # 6to4
        *("2001:0:a00:1::1", "2001:0:808:808:0:ffff:f5ff:fffe", "2001:0:808:808:0:ffff:f7f7:f7f7"),  # Teredo
    ],
)
def test_addresses_that_are_not(address: str) -> None:
    assert not is_public(ip_address(address))


class Names(AbstractResolver):
    """Where names lead: to the test's own server, unless ``elsewhere`` says otherwise."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.elsewhere: dict[str, list[str]] = {}
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: AddressFamily = AddressFamily.AF_UNSPEC
    ) -> list[ResolveResult]:
        self.asked.append(host)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=self.port,
                family=AF_INET6 if ":" in address else AF_INET,
                proto=0,
                flags=0,
            )
            for address in self.elsewhere.get(host, ["127.0.0.1"])
        ]

    async def close(self) -> None:
        pass


class Server:
    """A server of pictures whose answers a test chooses, by path."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {}
        self.requests: list[web.Request] = []

    def answer(self, path: str, **response: Any) -> None:
        async def respond(_: web.Request) -> web.Response:
            return web.Response(**response)

        self.answers[path] = respond

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        return await self.answers[request.path](request)


@pytest.fixture
async def server() -> Server:
    server = Server()
    server.answer("/fox.png", body=PICTURE)
    return server


@pytest.fixture
async def names(server: Server) -> AsyncIterator[Names]:
    app = web.Application()
    app.router.add_get("/{path:.*}", server.handle)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(CERTIFICATE)
    listening = TestServer(app, host="127.0.0.1", scheme="https")
    await listening.start_server(ssl=tls)
    assert listening.port is not None
    yield Names(listening.port)
    await listening.close()


def fetcher(names: Names, settings: ReferenceSettings = SETTINGS, **options: Any) -> Fetcher:
    """Make one that may ask this machine, unless told otherwise, and trusts the test's certificate."""
    tls = ssl.create_default_context(cafile=str(CERTIFICATE))
    return Fetcher(
        settings, **{"may_connect": lambda address: address.is_loopback, "resolver": names, "tls": tls, **options}
    )


@pytest.mark.parametrize("host", ["cdn.example.com", "a.pictures.example"])
async def test_a_picture_is_fetched(names: Names, server: Server, host: str) -> None:
    assert await fetcher(names).fetch(f"https://{host}/fox.png") == PICTURE
    (request,) = server.requests
    assert request.headers["User-Agent"] == "tenkaigen"
    assert request.headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    "host",
    ["evil.example", "cdn.example.com.evil.example", "xcdn.example.com", "pictures.example", "127.0.0.1", "[::1]"],
)
async def test_other_hosts_are_not_asked(names: Names, server: Server, host: str) -> None:
    with pytest.raises(ValueError, match=r"not a host that pictures are fetched from.*: they are cdn\.example"):
        await fetcher(names).fetch(f"https://{host}/fox.png")
    assert (names.asked, server.requests) == ([], [])


async def test_without_allowed_hosts_there_is_advice(names: Names) -> None:
    with pytest.raises(ValueError, match=r"references\.allowed_hosts.*upload the picture instead"):
        await fetcher(names, ReferenceSettings()).fetch(PNG)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1"])
async def test_an_allowed_name_that_leads_inside(names: Names, server: Server, address: str) -> None:
    names.elsewhere["cdn.example.com"] = [address, "fd00::7"]
    with pytest.raises(ValueError, match="not in the public internet") as caught:
        await fetcher(names, may_connect=is_public).fetch(PNG)
    assert address not in str(caught.value)
    assert server.requests == []


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("127.0.0.1", "not in the public internet"),
        ("[::1]", "not in the public internet"),
        ("[::ffff:7f00:1]", "not in the public internet"),
        ("0x7f.1", "not in the public internet"),
        ("2130706433", "leads to what is no URL"),
        ("127.1", "leads to what is no URL"),
    ],
)
async def test_an_address_instead_of_a_name(host: str, says: str) -> None:
    settings = ReferenceSettings.model_construct(allowed_hosts=(host.strip("[]"),))
    # With the system's own resolver: it knows the odd spellings of an address.
    with pytest.raises(ValueError, match=says):
        await Fetcher(settings).fetch(f"https://{host}/fox.png")


async def test_redirects_are_followed(names: Names, server: Server) -> None:
    server.answer("/1", status=301, headers={"Location": "2"})
    server.answer("/2", status=307, headers={"Location": "https://a.pictures.example/3"})
    server.answer("/3", status=302, headers={"Location": "//cdn.example.com/fox.png"})
    assert await fetcher(names).fetch("https://cdn.example.com/1") == PICTURE
    assert [request.host for request in server.requests] == [
        *("cdn.example.com", "cdn.example.com", "a.pictures.example", "cdn.example.com")
    ]


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("https://evil.example/fox.png", "evil.example is not a host"),
        ("https://127.0.0.1/fox.png", "127.0.0.1 is not a host"),
        ("http://cdn.example.com/fox.png", "which must be an https:// URL"),
        ("file:///etc/passwd", "which must be an https:// URL"),
        ("https://cdn.example.com:8443/", "not with port 8443"),
        ("https://me:secret@cdn.example.com/", "without a user name"),
        ("https://[::1", "which "),
        ("/again", "leads on and on"),
    ],
)
async def test_redirects_that_are_not(names: Names, server: Server, location: str, says: str) -> None:
    server.answer("/again", status=302, headers={"Location": location})
    with pytest.raises(ValueError, match=says):
        await fetcher(names).fetch("https://cdn.example.com/again")
    assert len(server.requests) == (4 if location == "/again" else 1)


async def test_a_redirect_that_leads_inside(names: Names, server: Server) -> None:
    server.answer("/fox.png", status=302, headers={"Location": "https://a.pictures.example/fox.png"})
    names.elsewhere["a.pictures.example"] = ["::1"]
    only = ip_address("127.0.0.1")
    with pytest.raises(ValueError, match="not in the public internet"):
        await fetcher(names, may_connect=lambda address: address == only).fetch(PNG)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 403, 404, 410, 418])
async def test_answers_that_will_not_change(names: Names, server: Server, status: int) -> None:
    server.answer("/fox.png", status=status)
    with pytest.raises(ValueError, match=f"answered {status}"):
        await fetcher(names).fetch(PNG)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_answers_that_may_change(names: Names, server: Server, status: int) -> None:
    server.answer("/fox.png", status=status)
    with pytest.raises(InfrastructureError, match=f"answered {status}") as caught:
        await fetcher(names).fetch(PNG)
    assert caught.value.code is Code.REFERENCE_UNAVAILABLE


@pytest.mark.parametrize("says_its_length", [True, False])
async def test_too_long(names: Names, server: Server, says_its_length: bool) -> None:
    sent = 0

    async def stream(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        if says_its_length:
            response.content_length = 10**12
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(10_000))
                sent += 10_000
        except ConnectionError:
            return response

    server.answers["/fox.png"] = stream
    with pytest.raises(ValueError, match="is longer than 20000 bytes"):
        await fetcher(names).fetch(PNG)


async def test_what_is_packed_is_not_unpacked(names: Names, server: Server) -> None:
    server.answer("/fox.png", body=b"\x1f\x8b packed", headers={"Content-Encoding": "gzip"})
    assert await fetcher(names).fetch(PNG) == b"\x1f\x8b packed"


async def test_cut_short(names: Names, server: Server) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 100
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.abort()
        return response

    server.answers["/fox.png"] = cut
    with pytest.raises(InfrastructureError, match="could not be reached"):
        await fetcher(names).fetch(PNG)


async def test_a_server_that_never_answers(names: Names, server: Server) -> None:
    given_up = asyncio.Event()

    async def hang(_: web.Request) -> web.StreamResponse:
        await given_up.wait()
        return web.Response()

    server.answers["/fox.png"] = hang
    impatient = SETTINGS.model_copy(update={"timeout_seconds": 0.2})
    with pytest.raises(InfrastructureError, match="took too long"):
        await fetcher(names, impatient).fetch(PNG)
    given_up.set()


async def test_a_certificate_that_nobody_trusts(names: Names, server: Server) -> None:
    with pytest.raises(InfrastructureError, match="no certificate that can be trusted"):
        await fetcher(names, tls=None).fetch(PNG)
    assert server.requests == []


async def test_a_server_that_is_not_there(names: Names) -> None:
    names.port = 1
    with pytest.raises(InfrastructureError, match=r"cdn\.example\.com could not be reached"):
        await fetcher(names).fetch(PNG)


async def test_proxies_of_the_environment_are_not_used(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert await fetcher(names).fetch(PNG) == PICTURE
