"""Folders of images to folders of masks: what infer.py is made of.

``Options`` are what the command line says, ``Settings`` what decides the result apart from the
weights and the image (noted beside the files), and the keyword arguments of ``segment_files`` say
what is saved and how fast it goes.

``program``: the stages, one after the other; ``task``: what is to be done; ``command_line``: the
options; ``settings`` and ``choose_settings``: the settings, and how they follow from options and
weights; ``jobs`` and ``search``: which files; ``windows``, ``segmenter``
and ``pixels``: from an image to its maps and labels; ``labels``: image-level labels; ``pipeline``
and ``memory_budget``: all of it at once, within the memory; ``kinds``, ``outputs`` and ``record``:
what can be saved, how, and where it comes from; ``exports``: files for annotation tools;
``finished``: what is there already; ``outcome``, ``scoring``, ``counts``, ``summary`` and
``summary_path``: what became of the images.
"""
