"""Volume growth rate (Hasegawa & Yasuda 2025): how much room a model's latent space leaves for one image.

The probability-flow ODE maps images to latents one to one. What grows on the way from the image to the latent is what
shrinks on the way back: an image whose neighbourhood is stretched much is one onto which much latent volume falls.
"""
