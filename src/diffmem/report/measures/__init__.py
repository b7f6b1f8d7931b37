"""What a run says of measured images."""
