"""Plugins: styles and hooks, from YAML, Python files and installed packages."""
