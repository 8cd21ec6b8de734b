"""Tests against a real PostgreSQL, or the real pipeline on small weights."""
