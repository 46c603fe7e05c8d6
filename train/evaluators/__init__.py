"""Evaluation by task."""
