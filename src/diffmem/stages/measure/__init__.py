"""Images to measures of how strongly the model holds on to them."""
