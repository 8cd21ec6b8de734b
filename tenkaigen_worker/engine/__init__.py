"""The engine: the model, in a process of its own."""
