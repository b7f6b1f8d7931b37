"""The verb `mitigate`."""
