"""Semantic segmentation with a Twins backbone: Semantic FPN and UPerNet."""
