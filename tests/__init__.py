"""The tests: unit, integration and scenarios."""
