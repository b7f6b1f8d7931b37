"""InvMM (Ma et al., ICCV 2025): how far the noise must be pushed until the model reproduces an image every time."""
