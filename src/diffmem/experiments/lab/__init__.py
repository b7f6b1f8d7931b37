"""The verb `lab`."""
