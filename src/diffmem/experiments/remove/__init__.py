"""The verb `remove`."""
