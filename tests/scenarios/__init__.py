"""One readable failure story per file, with real processes and real signals."""
