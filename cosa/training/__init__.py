"""What train.py is made of.

``build``: the parts of a training from its configuration; ``optimizer``: the learning rate and a
move of the weights; ``session``: what a run keeps and resumes; ``run_folder`` and ``checkpoints``:
its files; ``step_log``: losses, read now and then; ``evaluation``: scores and pictures as
configured; ``compile``: torch.compile with a way back.
"""
