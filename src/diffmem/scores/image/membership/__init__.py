"""Membership scores: a reference beside the memorization scores, because membership is not memorization."""
