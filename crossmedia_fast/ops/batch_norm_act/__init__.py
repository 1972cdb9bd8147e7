"""Batch normalization in training, with the activation behind it."""
