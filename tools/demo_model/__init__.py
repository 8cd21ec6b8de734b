"""The program that makes the demonstration model; see README.md."""
