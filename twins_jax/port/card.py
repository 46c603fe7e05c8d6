"""Writes the page that Hugging Face shows of a model: facts that its files tell, and how to load it."""

from twins_jax.config import variant_config
from twins_jax.errors import shown
from twins_jax.port.convert import Declared
from twins_jax.port.infer import Inferred
from twins_jax.published import PUBLISHED

MOST_NAMES = 20
"""Class names that are listed; `config.json` has all."""


def model_card(repository: str, model: Inferred, declared: Declared) -> str:
    """Returns a README.md with the metadata that Hugging Face reads; the license is its owner's to add.

    Args:
        repository: the name to load the model by.
        model: the model.
        declared: its class names, preprocessing and window padding.
    """
    loads_in_timm = model.name in PUBLISHED and model.num_classes is not None
    task = "image-feature-extraction" if not model.num_classes else "image-classification"
    tags = ["twins_jax", "jax", *(["timm"] if loads_in_timm else [])]
    family = "Twins-PCPVT" if variant_config(model.name).window_size is None else "Twins-SVT"
    load = "backbone_from_pretrained" if model.num_classes is None else "from_pretrained"
    lines = [
        *("---", "library_name: twins_jax", f"pipeline_tag: {task}"),
        *("tags:", *(f"- {tag}" for tag in tags), "---", ""),
        *(f"# {repository.rpartition('/')[2]}", ""),
        f"`{model.name}`, a {family} ([arXiv 2104.13840](https://arxiv.org/abs/2104.13840)) {_kind(model)}, saved by "
        f"twins_jax.",
        "",
        *_images(model, declared),
        *("## Use", "", "```python", "import twins_jax", ""),
        *(f'model = twins_jax.{load}("hf-hub:{repository}")', "```", ""),
    ]
    if loads_in_timm:
        lines += ["```python", "import timm", ""]
        lines += [f'model = timm.create_model("hf-hub:{repository}", pretrained=True)', "```", ""]
        if declared.window_padding == "mask":
            lines += ['timm has "zero" padding alone: it computes the same where 7 x 7 windows tile every map.', ""]
    if declared.class_names and model.num_classes:
        names = declared.class_names
        lines += ["## Classes", "", *(f"    {i} {shown(name)}" for i, name in enumerate(names[:MOST_NAMES])), ""]
        lines += ["`label_names` of `config.json` lists all.", ""] if len(names) > MOST_NAMES else []
    return "\n".join(lines)


def _kind(model: Inferred) -> str:
    if model.num_classes is None:
        return f"backbone{' with stage norms' if model.stage_norms else ''}"
    return f"classifier of {model.num_classes} classes" if model.num_classes else "classifier without its head"


def _images(model: Inferred, declared: Declared) -> list[str]:
    """Describes the input as far as it is known and not as usual."""
    facts = []
    if (images := declared.preprocessing) is not None:
        side = images.image_size
        facts.append(f"{side} x {side} pixels, center crop {images.crop:g}, {images.interpolation}")
        facts.append(f"mean {', '.join(map(str, images.mean))}, standard deviation {', '.join(map(str, images.std))}")
    if model.in_channels != 3:
        facts.append(f"{model.in_channels} channels")
    if declared.window_padding == "mask":
        facts.append('windows padded with `window_padding="mask"`')
    return [f"- Images: {facts[0]}", *(f"- {fact[0].upper()}{fact[1:]}" for fact in facts[1:]), ""] if facts else []
