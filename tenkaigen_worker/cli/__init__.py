"""The command line: the only place that wires everything together."""


def main() -> None:
    """Entry point of the console script."""
