"""Generated scenes: the data set of the demo, how it is drawn, and the encoder made for it."""

from cosa.data.scenes.dataset import ScenesDataset, export, main

__all__ = ["ScenesDataset", "export", "main"]
