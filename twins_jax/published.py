"""The published weights, by the name of their variant: all are ImageNet-1K classifiers under the Apache-2.0 license."""

from typing import NamedTuple


class Published(NamedTuple):
    """The two places that hold the same weights.

    Attributes:
        repository: on Hugging Face, by timm's authors; its tag "in1k" stands for ImageNet-1K.
        upstream: the file of the paper's authors, to which the README of `UPSTREAM` links.
    """

    repository: str
    upstream: str


UPSTREAM = "https://github.com/Meituan-AutoML/Twins"

PUBLISHED = {
    "twins_pcpvt_small": Published("timm/twins_pcpvt_small.in1k", "pcpvt_small.pth"),
    "twins_pcpvt_base": Published("timm/twins_pcpvt_base.in1k", "pcpvt_base.pth"),
    "twins_pcpvt_large": Published("timm/twins_pcpvt_large.in1k", "pcpvt_large.pth"),
    "twins_svt_small": Published("timm/twins_svt_small.in1k", "alt_gvt_small.pth"),
    "twins_svt_base": Published("timm/twins_svt_base.in1k", "alt_gvt_base.pth"),
    "twins_svt_large": Published("timm/twins_svt_large.in1k", "alt_gvt_large.pth"),
}
"""Variant -> its weights. `twins_svt_tiny` has none."""

REPOSITORIES = {weights.repository.partition("/")[2]: weights.repository for weights in PUBLISHED.values()}
"""timm's name with the tag, such as "twins_svt_small.in1k" -> repository."""


def find_repository(name: str) -> str | None:
    """Returns the repository of a variant's published weights; None for other names.

    Args:
        name: the variant, "twins_svt_small", or timm's name with the tag, "twins_svt_small.in1k".
    """
    return PUBLISHED[name].repository if name in PUBLISHED else REPOSITORIES.get(name)


def fetch_by_hand(repository: str) -> str:
    """Returns advice for a machine without a network, to end an error message; "" for a repository of others."""
    upstream = next((weights.upstream for weights in PUBLISHED.values() if weights.repository == repository), None)
    if upstream is None:
        return ""
    return (
        f"; without a network give the path of a copy: of model.safetensors and config.json from "
        f"https://huggingface.co/{repository} in one folder, or of {upstream}, which the README of {UPSTREAM} links to"
    )
