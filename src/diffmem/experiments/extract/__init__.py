"""The verb `extract`."""
