"""Measurements of this program: what the method is worth, and what it costs.

* ``campaigns``: many trainings that are compared, with verdicts by one rule: the ablation, the
  regularizers, and the runs that only they need.
* ``timings``: time, memory and operations of training, inference and their parts.
* ``stamp``: command, date, machine and revision of the program, which every table bears;
  ``tables``: how it looks, and its place in docs/benchmarks.md.

``python -m cosa.benchmark --help`` lists the commands.
"""
