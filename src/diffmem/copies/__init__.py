"""Are generated images copies of training images? Descriptors, exact nearest neighbours, calibrated verdicts."""
