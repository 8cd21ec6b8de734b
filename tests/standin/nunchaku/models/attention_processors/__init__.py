"""How attention is computed. The wheel has no file here; a linter wants one."""
