"""The verb `monitor`."""
