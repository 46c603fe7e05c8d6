"""Semantic segmentation: every pixel of an image has a class."""
