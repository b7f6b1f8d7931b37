"""How well scores separate: ROC figures defined once."""
