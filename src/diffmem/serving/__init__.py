"""A guard in front of a pipeline in service."""
