"""Claims: does a model, or a set of images, reproduce given works? With decoys, bounded nulls and proofs."""
