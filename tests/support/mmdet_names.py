"""The tensors of mmdet's detectors, written down without our code."""

from collections.abc import Sequence


def shapes(
    head: str, dims: Sequence[int], num_classes: int, channels: int = 256, hidden: int = 1024
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a neck and heads in a state dict of mmdet 2.8, written down from its modules.

    Args:
        head: "retinanet" or "mask_rcnn".
        dims: channels of the backbone's maps C2 to C5.
        num_classes: K.
        channels: of the pyramid and of convolutions.
        hidden: width of the box head.
    """
    found: dict[str, tuple[int, ...]] = {}

    def add(name: str, *weight: int, outputs: int | None = None) -> None:
        found[f"{name}.weight"] = weight
        found[f"{name}.bias"] = (weight[0] if outputs is None else outputs,)

    levels = dims[1:] if head == "retinanet" else dims
    for i, dim in enumerate(levels):
        add(f"neck.lateral_convs.{i}.conv", channels, dim, 1, 1)
        add(f"neck.fpn_convs.{i}.conv", channels, channels, 3, 3)
    if head == "retinanet":
        add("neck.fpn_convs.3.conv", channels, dims[3], 3, 3)
        add("neck.fpn_convs.4.conv", channels, channels, 3, 3)
        for i in range(4):
            add(f"bbox_head.cls_convs.{i}.conv", channels, channels, 3, 3)
            add(f"bbox_head.reg_convs.{i}.conv", channels, channels, 3, 3)
        add("bbox_head.retina_cls", 9 * num_classes, channels, 3, 3)
        add("bbox_head.retina_reg", 36, channels, 3, 3)
        return found
    add("rpn_head.rpn_conv", channels, channels, 3, 3)
    add("rpn_head.rpn_cls", 3, channels, 1, 1)
    add("rpn_head.rpn_reg", 12, channels, 1, 1)
    add("roi_head.bbox_head.shared_fcs.0", hidden, 49 * channels)
    add("roi_head.bbox_head.shared_fcs.1", hidden, hidden)
    add("roi_head.bbox_head.fc_cls", num_classes + 1, hidden)
    add("roi_head.bbox_head.fc_reg", 4 * num_classes, hidden)
    for i in range(4):
        add(f"roi_head.mask_head.convs.{i}.conv", channels, channels, 3, 3)
    add("roi_head.mask_head.upsample", channels, channels, 2, 2, outputs=channels)  # [in, out, 2, 2]
    add("roi_head.mask_head.conv_logits", num_classes, channels, 1, 1)
    return found
