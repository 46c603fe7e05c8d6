"""Object detection with a Twins backbone: RetinaNet and Mask R-CNN."""
