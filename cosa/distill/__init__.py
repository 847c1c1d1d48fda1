"""Weights for a small plain ViT where no pretrained one can be had: a CNN teaches it.

The ViT, the student, learns to yield what a pretrained CNN, the teacher, holds at each position, on
photographs without labels: its final map and, in the middle, that of an early stage. Linear maps
from the student's channels to the teacher's stand between them, and are thrown away. Both see the
same random crops, of which a share are mixed with one another.

    python -m cosa.distill PHOTOS --output weights/student.safetensors \\
        --student-options '{"img_size": 256}' --crop 256 --batch 128 --minutes 5
    python train.py configs/photographs_vit.yaml data.root=/data/pets

``photographs``: found, decoded once, held on the device; ``crops``: cut there, coloured, mixed;
``networks``: teacher and student, and how far the one is off the other; ``fit``: the steps;
``command``: the command line, and what is written.
"""
