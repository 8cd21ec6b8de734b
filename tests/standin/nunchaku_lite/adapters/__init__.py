"""Adapters by kind of transformer."""
