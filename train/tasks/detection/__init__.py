"""Object detection: the objects of an image have boxes, classes and, for Mask R-CNN, masks."""
