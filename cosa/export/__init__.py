"""A trained network for use without this program: one forward pass as ONNX or torch.export.

``program``: what is exported; ``formats``: both files and their metadata; ``check``: their outputs
compared with the network's; ``command``: all of it, as ``python -m cosa.export``.
"""
