"""The version whose facts are modelled."""

__version__ = "0.1.0dev"
