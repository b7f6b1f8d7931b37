"""Prompt lists and image sets: reading, decoding within limits, fingerprints."""
