"""Measurements on generated scenes: what CoSA and each of its parts are worth.

``python -m cosa.benchmark ablation`` trains all rows of the table and writes the report.
"""
