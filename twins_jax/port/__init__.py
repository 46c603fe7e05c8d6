"""Weights from and to files: PyTorch state dicts, and Orbax folders of this project's parameters."""
