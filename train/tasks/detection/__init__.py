"""Object detection and instance segmentation: boxes, classes and masks of the things in an image."""
