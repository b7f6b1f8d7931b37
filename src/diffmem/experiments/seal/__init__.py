"""The verbs `seal` and `verify`."""
