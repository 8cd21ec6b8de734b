"""Quick tests without a database or a model; only the engine's own use processes."""
