"""What other programs use: a trained network, and what it finds.

One forward pass as ONNX or torch.export. ``forward``: what is exported; ``formats``: both files and
their metadata; ``check``: their outputs compared with the network's; ``command``: all of it, as
``python -m cosa.export``. Masks for annotation tools: ``annotations``.
"""
