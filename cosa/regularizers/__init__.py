"""Losses of other papers as online regularizers of CoSA: one file each, one interface (base.py)."""
