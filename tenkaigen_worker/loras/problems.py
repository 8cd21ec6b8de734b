"""What can be wrong with a LoRA's file, as errors of the job that wants it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tenkaigen_worker.errors import Code, InfrastructureError, InputError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def unusable(name: str, why: str) -> InputError:
    """Make the error of a file that will not be better the next time."""
    return InputError(f"the LoRA {name} cannot be used: {why}", code=Code.LORA_UNUSABLE)


def failed(name: str, why: str) -> InfrastructureError:
    """Make the error of what may pass: network, server, disk."""
    return InfrastructureError(Code.LORA_FAILED, f"the LoRA {name} cannot be fetched now: {why}")


@contextmanager
def disk_explained(name: str, path: Path) -> Iterator[None]:
    """Turn an operating system's refusal into a sentence with the way out."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            advice = "make room there, or set loras.cache_dir to another disk"
        elif error.errno in _FORBIDDEN:
            advice = "give this user the right to write there, or set loras.cache_dir to another folder"
        else:
            advice = "check this folder, or set loras.cache_dir to another one"
        raise failed(name, f"{path}: {error.strerror or error}: {advice}") from error
