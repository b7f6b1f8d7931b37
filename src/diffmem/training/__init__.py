"""The copying lab: training with known duplication, captions and mitigations."""
