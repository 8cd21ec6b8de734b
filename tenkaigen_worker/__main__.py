"""``python -m tenkaigen_worker``: the same as the console script ``tenkaigen``."""

from tenkaigen_worker.cli import main

main()
