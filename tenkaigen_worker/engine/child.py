"""The engine's child process: loads a model and runs one recipe after another, as its parent says.

Started by :mod:`tenkaigen_worker.engine.process` with the number of an inherited socket as its only argument. The main
thread works; a second one reads the socket, so that a cancel arrives in the middle of a step and the loss of the
parent ends the process at once. torch is only imported by backends that need it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from dataclasses import dataclass, replace

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine import messages
from tenkaigen_worker.engine.backend import Backend, DeviceBroken, OutOfMemory, Stopped, load_backend
from tenkaigen_worker.engine.base import EngineInfo, Inputs
from tenkaigen_worker.errors import Code, InputError, JobError
from tenkaigen_worker.recipe import Recipe

EXIT_PARENT_LOST = 3
EXIT_FAILED = 4

log = logging.getLogger("tenkaigen.engine")

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Order:
    """A recipe to run, and the event that stops it."""

    run: int
    recipe: Recipe
    inputs: Inputs
    cancel: threading.Event


class Inbox:
    """Reads what the parent says, in a thread of its own: orders wait in a queue, a cancel takes effect at once."""

    def __init__(self, channel: messages.BlockingChannel) -> None:
        self._channel = channel
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._cancels: dict[int, threading.Event] = {}

    def listen(self) -> None:
        """Start reading."""
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def next(self) -> Order | None:
        """Wait for the next order; ``None`` means to end."""
        return self._orders.get()

    def over(self, order: Order) -> None:
        """Forget an order that has ended: a late cancel finds nothing."""
        self._cancels.pop(order.run, None)

    def _read(self) -> None:
        try:
            while True:
                match self._channel.receive():
                    case messages.Run(run, recipe, inputs):
                        self._cancels[run] = threading.Event()
                        self._orders.put(Order(run, recipe, inputs, self._cancels[run]))
                    case messages.Cancel(run):
                        if cancel := self._cancels.get(run):
                            cancel.set()
                    case messages.Shutdown():
                        self._orders.put(None)
                        for cancel in tuple(self._cancels.values()):
                            cancel.set()
                    case _:
                        break
        finally:
            # Whatever went wrong, the parent cannot be heard any more. The main thread may be deep inside a step.
            os._exit(EXIT_PARENT_LOST)


class Child:
    """One loaded backend, and the words it says to the parent."""

    def __init__(self, channel: messages.BlockingChannel, backend: Backend) -> None:
        self._channel = channel
        self._backend = backend

    def work(self, order: Order) -> bool:
        """Run one order to its end and say how it ended; false when this process must end too."""
        try:
            self._run(order)
        except Stopped:
            self._channel.send(messages.Canceled(order.run))
        except DeviceBroken as error:
            traceback.print_exception(error)
            self._channel.send(messages.Failed(order.run, Code.ENGINE_FAILED, str(error), fatal=True))
            return False
        except Exception as error:
            self._channel.send(failure(order.run, error))
        else:
            self._channel.send(messages.Done(order.run))
        return True

    def _run(self, order: Order) -> None:
        finished = 0
        for lean in (False, True):
            try:
                for picture in self._backend.pictures(
                    order.recipe,
                    order.inputs,
                    first=finished,
                    lean=lean,
                    report=lambda step: self._channel.send(messages.Progress(order.run, step)),
                    cancel=order.cancel,
                ):
                    self._channel.send(messages.PictureReady(order.run, picture))
                    finished += 1
            except OutOfMemory:
                log.warning("Out of memory on %s%s", self._backend.device, ", in the leaner way too" if lean else "")
            else:
                return

        raise InputError(
            f"a picture of {order.recipe.width} x {order.recipe.height} does not fit into the memory of "
            f"{self._backend.device}; ask for a smaller one",
            code=Code.TOO_LARGE,
        )


def failure(run: int | None, error: Exception) -> messages.Failed:
    """Put an error into words for the parent. What nobody expected also leaves its traceback on standard error."""
    if isinstance(error, JobError):
        return messages.Failed(run, error.code, str(error))

    traceback.print_exception(error)
    line = " ".join(str(error).split())[:500]
    return messages.Failed(run, Code.ENGINE_FAILED, f"{type(error).__name__}: {line}")


def main() -> None:
    """Serve the parent until it says to end."""
    _stay_with_parent()
    _set_up_output()

    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    channel = messages.BlockingChannel(sock)

    load = channel.receive()
    if not isinstance(load, messages.Load):
        sys.exit(EXIT_PARENT_LOST)
    inbox = Inbox(channel)
    inbox.listen()

    backend = _load(load.settings, channel)
    healthy = backend is not None
    if backend is not None:
        child = Child(channel, backend)
        while healthy and (order := inbox.next()) is not None:
            healthy = child.work(order)
            inbox.over(order)

    # A model's teardown may take its time, or hang in a driver; nothing in it is needed.
    sys.stderr.flush()
    os._exit(0 if healthy else EXIT_FAILED)


def _load(settings: EngineSettings, channel: messages.BlockingChannel) -> Backend | None:
    started = time.monotonic()
    try:
        backend = load_backend(settings, alive=lambda: channel.send(messages.Loading()))
    except Exception as error:
        channel.send(replace(failure(None, error), fatal=True))
        return None

    load_ms = round((time.monotonic() - started) * 1000)
    stages, limits = backend.stages_ms, backend.limits
    channel.send(messages.Loaded(EngineInfo(backend.model, backend.device, backend.dtype, load_ms, stages, limits)))
    return backend


def _stay_with_parent() -> None:
    """Leave signals to the parent, and end when it does."""
    # Ctrl-C and a service manager's SIGTERM go to the whole group; only the parent knows whether this run may finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        # The socket's end tells as well, but only once the interpreter gets a turn: a native call may hold it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class _WithAction(logging.Formatter):
    """Puts a record's action before its line, from where the parent takes it."""

    def format(self, record: logging.LogRecord) -> str:
        action: str | None = getattr(record, "action", None)
        return f"[{action}] {super().format(record)}" if action else super().format(record)


def _set_up_output() -> None:
    """Send what is worth reading to standard error, which the parent logs line by line."""
    faulthandler.enable()
    handler = logging.StreamHandler()
    handler.setFormatter(_WithAction("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("tenkaigen").setLevel(logging.INFO)
    os.environ.update(TRANSFORMERS_VERBOSITY="error", DIFFUSERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
    # One line at load, then quiet: libraries announce their next version's changes to whoever runs them.
    warnings.filterwarnings("ignore", category=FutureWarning)


if __name__ == "__main__":
    main()
