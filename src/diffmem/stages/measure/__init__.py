"""Images to measures of how strongly the model memorizes them."""
