"""Review by people: labels of pairs, the sample that is drawn for them, what they show of the matcher."""
