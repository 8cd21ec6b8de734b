"""Plugins: styles, LoRAs and hooks, from YAML, Python files and installed packages.

Everything a plugin's author needs is imported from here; :mod:`~tenkaigen_worker.plugin.hookspecs` lists the hooks.
"""

from tenkaigen_worker.plugin.hookspecs import hookimpl
from tenkaigen_worker.plugin.types import FinishedJob, Lora, LoraUse, PictureInfo, Prompt, Refused, Style

__all__ = ["FinishedJob", "Lora", "LoraUse", "PictureInfo", "Prompt", "Refused", "Style", "hookimpl"]
