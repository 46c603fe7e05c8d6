"""Measuring: speed, memory and traffic of models, training steps and the input pipeline; nothing imports it."""
