"""The model under audit."""
