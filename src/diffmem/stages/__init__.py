"""The stages: plan to rows, resumable. A stage never imports the report."""
