"""The verb `match`."""
