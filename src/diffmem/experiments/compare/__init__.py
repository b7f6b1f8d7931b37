"""The page of the verb `compare`."""
