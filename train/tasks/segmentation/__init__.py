"""Semantic segmentation: images with a class index at each pixel."""
