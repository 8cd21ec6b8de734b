"""The front door: a thin HTTP API over the job table."""
