"""Folders of images to folders of masks: what infer.py is made of.

``options``: the command line; ``jobs`` and ``search``: which files; ``settings``: how;
``windows``, ``segmenter`` and ``pixels``: from an image to its maps and labels; ``labels``:
image-level labels; ``outputs`` and ``record``: what is saved and where it comes from;
``pipeline``: all of it at once; ``scoring``, ``counts`` and ``summary``: about it.
"""
