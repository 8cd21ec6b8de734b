"""The ``blank`` backend: no model, a flat picture, and faults on demand.

It exists to test everything around a model: the queue, the worker, the host. A picture's colour comes from its seed.
Each step takes two milliseconds. Words in the prompt make it misbehave in the middle of the steps:

=============  =========================================================================================
``[slow 0.2]`` every step takes 0.2 seconds
``[noise]``    prints to standard output, as libraries do
``[fail]``     raises an unexpected exception
``[hang]``     never speaks again, and does not obey a cancel
``[crash]``    ends the process as a native library would (SIGABRT)
``[oom]``      is out of memory, in every way it tries
``[oom once]`` is out of memory, but fits in the leaner way
``[broken]``   reports that the device needs a new process
=============  =========================================================================================
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar

from tenkaigen_worker.engine.backend import DeviceBroken, OutOfMemory, Report, Stopped
from tenkaigen_worker.engine.base import Inputs, Picture, Step
from tenkaigen_worker.offers import NO_LIMITS
from tenkaigen_worker.recipe import Model, Recipe

STEP_SECONDS = 0.002

_FAULT = re.compile(r"\[(slow|noise|fail|hang|crash|oom once|oom|broken)(?: (\d+(?:\.\d+)?))?\]")


class BlankBackend:
    """Flat pictures, at once."""

    model = Model(
        backend="blank",
        name="blank",
        revision=None,
        default_width=256,
        default_height=256,
        demo=True,
        default_steps=4,
        base="blank",
        edit_model="blank",
    )
    device = "none"
    dtype = "uint8"
    stages_ms: ClassVar[Mapping[str, int]] = {}
    limits = NO_LIMITS

    def pictures(
        self, recipe: Recipe, inputs: Inputs, *, first: int, lean: bool, report: Report, cancel: threading.Event
    ) -> Iterator[Picture]:
        """Make flat pictures; see the module's words for the faults it understands."""
        faults = {fault: float(value or 0) for fault, value in _FAULT.findall(recipe.prompt)}
        for index, seed in enumerate(recipe.seeds[first:], start=first):
            started = time.monotonic()
            report(Step("encode", index, 1, 1))
            for step in range(1, recipe.steps + 1):
                if cancel.wait(faults.get("slow", STEP_SECONDS)):
                    raise Stopped
                report(Step("denoise", index, step, recipe.steps))
                if step == (recipe.steps + 1) // 2:
                    _misbehave(faults.keys(), lean=lean)

            report(Step("decode", index, 0, 1))
            colour = hashlib.sha256(str(seed).encode()).digest()[:3]
            timings = {"denoise": round((time.monotonic() - started) * 1000)}
            yield Picture(index, seed, recipe.width, recipe.height, colour * (recipe.width * recipe.height), timings)


def _misbehave(faults: Collection[str], *, lean: bool) -> None:
    if "noise" in faults:
        print("noise on standard output \x00\xff", flush=True)
        os.write(1, b"TKG1 and some raw bytes \xfe\xff\n")
    if "fail" in faults:
        raise RuntimeError("the prompt asked the blank backend to fail")
    if "hang" in faults:
        threading.Event().wait()
    if "crash" in faults:
        sys.stderr.write("the prompt asked the blank backend to crash\n")
        os.abort()
    if "oom" in faults or ("oom once" in faults and not lean):
        raise OutOfMemory
    if "broken" in faults:
        raise DeviceBroken("the prompt asked the blank backend for a broken device")
