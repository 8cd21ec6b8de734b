"""The release whose facts are modelled."""

__version__ = "1.2.1"
