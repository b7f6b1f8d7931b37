"""What a run found, in one digest, and the views of it."""
