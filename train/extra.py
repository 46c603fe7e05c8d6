"""The packages of the extra `train`."""

TRAINING = ("absl", "grain", "numba", "optax", "PIL", "simplejpeg", "tensorboardX", "tqdm", "tyro")
"""The modules that every run imports. Some data sets need more, and name it."""
