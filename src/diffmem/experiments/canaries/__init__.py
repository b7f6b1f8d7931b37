"""The verb `canaries`."""
