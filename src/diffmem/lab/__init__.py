"""The copying lab: a grid of duplication, captions and mitigations, trained, generated, measured and compared."""
