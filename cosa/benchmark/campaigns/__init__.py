"""Trainings that are compared: what each part of the method, and each regularizer, is worth."""
