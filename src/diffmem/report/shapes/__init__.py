"""The parts that a digest is made of, by what they are about."""
