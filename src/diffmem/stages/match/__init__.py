"""Generated images to their nearest training images."""
