"""Frames between the engine's parent and child: what goes in comes out, and nothing else gets through."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine import messages
from tenkaigen_worker.engine.base import NO_INPUTS, EngineInfo, Picture, Step
from tenkaigen_worker.engine.messages import AsyncChannel, BlockingChannel, Message, ProtocolError
from tenkaigen_worker.errors import Code
from tenkaigen_worker.recipe import Model, Recipe

RECIPE = Recipe("a fox, ünïcode \x00", "", "Anime", 64, 32, "quality", 4, 1.0, "base", (1, 2**63 - 1), "blank", "blank")
MODEL = Model("blank", "blank", None, 256, 256, demo=True)
PICTURE = Picture(0, 7, 4, 2, bytes(range(24)), {"denoise": 12})

MESSAGES: tuple[Message, ...] = (
    messages.Load(EngineSettings(backend="tiny", threads=1)),
    messages.Run(1, RECIPE, NO_INPUTS),
    messages.Cancel(1),
    messages.Shutdown(),
    messages.Loading(),
    messages.Loaded(EngineInfo(MODEL, "cpu", "float32", 12)),
    messages.Progress(1, Step("denoise", 0, 3, 4)),
    messages.PictureReady(1, PICTURE),
    messages.Done(1),
    messages.Canceled(1),
    messages.Failed(None, Code.ENGINE_FAILED, "no\nmodel", fatal=True),
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def frame(header: bytes, body: bytes = b"", *, magic: bytes = messages.MAGIC) -> bytes:
    return magic + len(header).to_bytes(4) + len(body).to_bytes(4) + header + body


def test_every_message_has_an_example() -> None:
    assert {type(message) for message in MESSAGES} == set(messages.Message.__args__)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent_to_the_child(
    message: Message, pair: tuple[socket.socket, socket.socket]
) -> None:
    BlockingChannel(pair[0]).send(message)

    assert BlockingChannel(pair[1]).receive() == message


async def test_all_messages_arrive_in_order_at_the_parent(pair: tuple[socket.socket, socket.socket]) -> None:
    parent = await AsyncChannel.open(pair[0])
    child = BlockingChannel(pair[1])
    for message in MESSAGES:
        child.send(message)
    pair[1].shutdown(socket.SHUT_WR)

    assert [await parent.receive() for _ in MESSAGES] == list(MESSAGES)
    assert await parent.receive() is None
    parent.close()


async def test_a_large_picture_crosses_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    picture = Picture(0, 7, 1024, 1024, bytes(range(256)) * (1024 * 12), {})
    parent = await AsyncChannel.open(pair[0])
    sending = asyncio.create_task(asyncio.to_thread(BlockingChannel(pair[1]).send, messages.PictureReady(3, picture)))

    assert await parent.receive() == messages.PictureReady(3, picture)
    await sending
    parent.close()


def test_an_end_between_frames_is_an_end(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].close()

    assert BlockingChannel(pair[1]).receive() is None


BAD_FRAMES = {
    "another protocol": (frame(b"{}", magic=b"HTTP"), "instead of b'TKG1'"),
    "a header that would fill the memory": (messages.MAGIC + b"\xff" * 8, "larger than any message"),
    "a body that would fill the memory": (messages.MAGIC + b"\0\0\0\1\xff\xff\xff\xff", "larger than any message"),
    "no JSON": (frame(b"\xff\xfe"), "is no message"),
    "JSON of another shape": (frame(b'{"a": 1}'), "is no message"),
    "an unknown message": (frame(b'["Format", {}]'), "is no message"),
    "a name that cannot be one": (frame(b"[[], {}]"), "is no message"),
    "a missing field": (frame(b'["Cancel", {}]'), "Field required"),
    "a field of the wrong type": (frame(b'["Cancel", {"run": "soon"}]'), "valid integer"),
    "a body where none belongs": (frame(b'["Done", {"run": 1}]', b"xyz"), "has no body"),
    "a picture of another size": (
        frame(messages.encode(messages.PictureReady(1, PICTURE))[0][12:], bytes(23)),
        "4 x 2 came as 23 bytes",
    ),
}


@pytest.mark.parametrize(("data", "complaint"), BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
async def test_a_bad_frame_is_a_clear_error_on_both_sides(
    data: bytes, complaint: str, pair: tuple[socket.socket, socket.socket]
) -> None:
    other_ours, other_theirs = socket.socketpair()
    for sock in (pair[1], other_theirs):
        sock.sendall(data)
        sock.close()

    with pytest.raises(ProtocolError, match=complaint):
        BlockingChannel(pair[0]).receive()
    channel = await AsyncChannel.open(other_ours)
    with pytest.raises(ProtocolError, match=complaint):
        await channel.receive()
    channel.close()


@pytest.mark.parametrize("cut", [messages.MAGIC, frame(b'["Done", {"run": 1}]')[:-3]], ids=["prefix", "header"])
async def test_a_frame_cut_short_is_an_error_to_the_child_and_the_end_to_the_parent(
    cut: bytes, pair: tuple[socket.socket, socket.socket]
) -> None:
    other_ours, other_theirs = socket.socketpair()
    for sock in (pair[1], other_theirs):
        sock.sendall(cut)
        sock.close()

    with pytest.raises(ProtocolError, match="middle of a frame"):
        BlockingChannel(pair[0]).receive()
    channel = await AsyncChannel.open(other_ours)
    assert await channel.receive() is None
    channel.close()


def test_a_message_too_large_to_be_read_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="too large"):
        messages.encode(messages.Failed(1, Code.INTERNAL, "x" * messages.MAX_HEADER_BYTES))


@given(st.recursive(st.none() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3)))
def test_no_header_gets_through_as_anything_but_a_message(content: object) -> None:
    with pytest.raises(ProtocolError):
        messages.decode(json.dumps(content).encode(), b"")
