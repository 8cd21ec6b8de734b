"""Telling a service manager that we are ready: the ``sd_notify`` protocol of systemd, which ``up`` speaks too."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("tenkaigen.stack")

VARIABLE = "NOTIFY_SOCKET"
_READY = "READY=1"
_STATUS = "STATUS="


def say_ready(status: str) -> None:
    """Say that this process is ready, and ``status`` in words; does nothing when nobody listens."""
    address = os.environ.get(VARIABLE)
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        # A leading @ stands for the zero byte of Linux's abstract addresses.
        manager.setblocking(False)
        try:
            manager.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            manager.send(f"{_READY}\n{_STATUS}{status}".encode())
        except OSError as error:
            log.warning("%s %s does not hear us: %s", VARIABLE, address, error, extra={"action": "ready_unheard"})


class ReadyListener:
    """Hears :func:`say_ready` of one process whose environment has ``NOTIFY_SOCKET`` set to :attr:`address`."""

    def __init__(self, address: str, channel: socket.socket) -> None:
        self.address = address
        self._channel = channel

    async def status(self) -> str:
        """Wait until the process is ready, and answer its status."""
        while True:
            lines = (await asyncio.get_running_loop().sock_recv(self._channel, 4096)).decode().splitlines()
            if _READY in lines:
                return next((line.removeprefix(_STATUS) for line in lines if line.startswith(_STATUS)), "")


@contextmanager
def listening() -> Iterator[ReadyListener]:
    """Open a :class:`ReadyListener` while the block runs."""
    # Among the temporary files: a socket's path must be short.
    with (
        tempfile.TemporaryDirectory(prefix="tenkaigen-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel,
    ):
        address = str(Path(folder) / "ready")
        channel.bind(address)
        channel.setblocking(False)
        yield ReadyListener(address, channel)
