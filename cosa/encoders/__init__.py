"""timm models as the encoder of the network: built, run, and loaded with pre-trained weights."""
