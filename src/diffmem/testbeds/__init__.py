"""Models whose memorization is known: closed forms, and small pipelines trained with planted duplicates."""
