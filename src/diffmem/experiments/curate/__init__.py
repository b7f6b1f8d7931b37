"""The verb `curate`."""
