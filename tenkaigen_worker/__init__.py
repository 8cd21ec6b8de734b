"""tenkaigen_worker: turns rows of a Postgres table into pictures."""

__version__ = "0.1.0"
