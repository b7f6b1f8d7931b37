"""A real latent text-to-image pipeline on recognisable pictures with known, planted memorization."""
