"""A real text-to-image pipeline on scikit-learn's digits with known, planted memorization, and its unconditional twin."""
