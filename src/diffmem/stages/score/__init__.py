"""Prompts to scores."""
