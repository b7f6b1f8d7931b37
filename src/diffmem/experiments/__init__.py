"""One folder per verb: its plan, its summary, its page."""
