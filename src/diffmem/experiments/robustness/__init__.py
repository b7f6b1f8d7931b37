"""The verb `robustness`."""
