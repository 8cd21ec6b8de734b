"""What the engine's parent and child say to each other, and how it travels over their socket pair.

A frame is a fixed prefix (magic, header length, body length), a JSON header, and a body of raw bytes. The header is a
:class:`Message` without its bytes; only :class:`PictureReady` has a body. Nothing is ever unpickled. Whatever is not
such a frame raises :class:`ProtocolError`: the other side is then not to be trusted with anything more.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from dataclasses import dataclass, replace
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.base import EngineInfo, Inputs, Picture, Step
from tenkaigen_worker.errors import Code
from tenkaigen_worker.recipe import Recipe

MAGIC = b"TKG1"
MAX_HEADER_BYTES = 1_048_576
MAX_BODY_BYTES = 268_435_456  # a picture of 8192 x 8192 fits, a mistaken length does not

_PREFIX = struct.Struct(">4sII")


class ProtocolError(Exception):
    """A frame is torn, too large, or not of this protocol."""


@dataclass(frozen=True, slots=True)
class Load:
    """To the child, first of all: load this model. Answered by :class:`Loaded` or :class:`Failed`."""

    settings: EngineSettings


@dataclass(frozen=True, slots=True)
class Run:
    """To the child: make this recipe's pictures. ``run`` numbers the runs of one child."""

    run: int
    recipe: Recipe
    inputs: Inputs


@dataclass(frozen=True, slots=True)
class Cancel:
    """To the child: stop this run. Answered by the run's end; a run that is over is not disturbed."""

    run: int


@dataclass(frozen=True, slots=True)
class Shutdown:
    """To the child: end as soon as the current step is done."""


@dataclass(frozen=True, slots=True)
class Loading:
    """From the child: loading goes on; resets the limit on silence."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """From the child: the model is ready."""

    info: EngineInfo


@dataclass(frozen=True, slots=True)
class Progress:
    """From the child: one step further."""

    run: int
    step: Step


@dataclass(frozen=True, slots=True)
class PictureReady:
    """From the child: one finished picture, whose pixels are the frame's body."""

    run: int
    picture: Picture


@dataclass(frozen=True, slots=True)
class Done:
    """From the child: the run is complete."""

    run: int


@dataclass(frozen=True, slots=True)
class Canceled:
    """From the child: the run was stopped as asked."""

    run: int


@dataclass(frozen=True, slots=True)
class Failed:
    """From the child: loading (``run`` is ``None``) or a run failed.

    ``code`` says whose fault it is; after a ``fatal`` failure the child ends.
    """

    run: int | None
    code: Code
    message: str
    fatal: bool = False


Message = Load | Run | Cancel | Shutdown | Loading | Loaded | Progress | PictureReady | Done | Canceled | Failed

_ADAPTERS: dict[str, TypeAdapter[Any]] = {cls.__name__: TypeAdapter(cls) for cls in get_args(Message)}


def encode(message: Message) -> tuple[bytes, bytes]:
    """Turn a message into the front of its frame and its body (kept apart: pixels are not copied)."""
    body = b""
    if isinstance(message, PictureReady):
        body = message.picture.pixels
        message = PictureReady(message.run, replace(message.picture, pixels=b""))

    fields = _ADAPTERS[type(message).__name__].dump_python(message, mode="json")
    header = json.dumps([type(message).__name__, fields], separators=(",", ":")).encode()
    if len(header) > MAX_HEADER_BYTES or len(body) > MAX_BODY_BYTES:
        raise ProtocolError(f"a {type(message).__name__} message of {len(header)} + {len(body)} bytes is too large")
    return _PREFIX.pack(MAGIC, len(header), len(body)) + header, body


def decode_prefix(prefix: bytes) -> tuple[int, int]:
    """Read the lengths of header and body, in bytes."""
    magic, header_length, body_length = _PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise ProtocolError(f"a frame starts with {magic!r} instead of {MAGIC!r}")
    if header_length > MAX_HEADER_BYTES or body_length > MAX_BODY_BYTES:
        raise ProtocolError(f"a frame of {header_length} + {body_length} bytes is larger than any message")
    return header_length, body_length


def decode(header: bytes, body: bytes) -> Message:
    """Turn a frame's header and body back into the message that :func:`encode` was given."""
    try:
        name, fields = json.loads(header)
        message: Message = _ADAPTERS[name].validate_python(fields)
    except (ValueError, TypeError, KeyError) as error:
        cause = error.errors()[0]["msg"] if isinstance(error, ValidationError) else repr(error)
        raise ProtocolError(f"a frame's header is no message: {cause}") from error

    if not isinstance(message, PictureReady):
        if body:
            raise ProtocolError(f"a {name} message has no body, but {len(body)} bytes came")
        return message

    picture = message.picture
    if len(body) != picture.width * picture.height * 3:
        raise ProtocolError(f"a picture of {picture.width} x {picture.height} came as {len(body)} bytes")
    return PictureReady(message.run, replace(picture, pixels=body))


class AsyncChannel:
    """The parent's end of the socket pair."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, sock: socket.socket) -> AsyncChannel:
        """Take over ``sock``; it is closed with the channel."""
        # The buffer holds a usual picture whole, so that reading one is not paused again and again.
        return cls(*await asyncio.open_unix_connection(sock=sock, limit=4 * 1_048_576))

    def send(self, message: Message) -> None:
        """Queue a message for sending; to a closed other end it is lost without a word (reading tells)."""
        for part in encode(message):
            self._writer.write(part)

    async def receive(self) -> Message | None:
        """Wait for the next message; ``None`` when the other side is gone, be it in the middle of a frame.

        A child that was killed while it spoke broke no rule: how it ended is the better cause.
        """
        try:
            header_length, body_length = decode_prefix(await self._reader.readexactly(_PREFIX.size))
            header = await self._reader.readexactly(header_length)
            body = await self._reader.readexactly(body_length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return decode(header, body)

    def close(self) -> None:
        """Close the socket; what was not sent yet is lost."""
        self._writer.transport.abort()


class BlockingChannel:
    """The child's end of the socket pair: one thread may read while another one writes."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, message: Message) -> None:
        """Send a message; raises ``OSError`` when the other side is gone."""
        front, body = encode(message)
        self._sock.sendall(front)
        if body:
            self._sock.sendall(body)

    def receive(self) -> Message | None:
        """Wait for the next message; ``None`` when the other side closed between two frames."""
        prefix = self._read(_PREFIX.size, between_frames=True)
        if prefix is None:
            return None
        header_length, body_length = decode_prefix(prefix)
        return decode(self._read(header_length) or b"", self._read(body_length) or b"")

    def _read(self, size: int, *, between_frames: bool = False) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            chunk = self._sock.recv(size - len(data))
            if not chunk and between_frames and not data:
                return None
            if not chunk:
                raise ProtocolError("the other side closed in the middle of a frame")
            data += chunk
        return bytes(data)
