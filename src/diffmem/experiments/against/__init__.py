"""The verb `against`."""
