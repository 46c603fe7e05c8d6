"""Training and evaluation of Twins models."""
