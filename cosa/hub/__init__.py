"""A run on the Hugging Face hub: python -m cosa.hub push RUN user/name.

``run``: what a run folder holds that others get; ``card``: what is told of it; ``files``: both as
the files of a folder; ``push``: the folder on the hub. How weights come back from there is in
``cosa.core.hub``.
"""
