"""Writes the page that Hugging Face shows of a model: facts that its files tell, and how to load it."""

from twins_jax.config import variant_config
from twins_jax.errors import shown
from twins_jax.port.convert import Declared
from twins_jax.port.describe import shown_size
from twins_jax.port.infer import KINDS, Inferred
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
    loads_in_timm = model.name in PUBLISHED and model.kind_name == "classifier"
    family = "Twins-PCPVT" if variant_config(model.name).window_size is None else "Twins-SVT"
    paper = "[arXiv 2104.13840](https://arxiv.org/abs/2104.13840)"
    lines = [
        "---",
        "library_name: twins_jax",
        f"pipeline_tag: {_task(model)}",
        "tags:",
        *(f"- {tag}" for tag in ("twins_jax", "jax", *(["timm"] if loads_in_timm else []))),
        "---",
        "",
        f"# {repository.rpartition('/')[2]}",
        "",
        f"`{model.name}`, a {family} ({paper}) {_kind(model)}, saved by twins_jax.",
        "",
        *_input(model, declared),
        "## Use",
        "",
        "```python",
        "import twins_jax",
        "",
        f'model = twins_jax.{model.kind.loader}("hf-hub:{repository}")',
        "```",
        "",
        *(_timm(repository, declared) if loads_in_timm else []),
        *(_classes(declared.class_names) if declared.class_names and model.num_classes else []),
    ]
    return "\n".join(lines)


def _task(model: Inferred) -> str:
    return model.kind.task if model.num_classes else KINDS["backbone"].task


def _kind(model: Inferred) -> str:
    if model.num_classes is None:
        return "backbone with stage norms" if model.stage_norms else "backbone"
    if model.num_classes == 0:
        return "classifier without its head"
    noun = model.kind.noun.partition(" ")[2]  # without its article
    return f"{noun} of {model.num_classes} class{'es' if model.num_classes > 1 else ''}"


def _input(model: Inferred, declared: Declared) -> list[str]:
    """Describes the images, as far as they are known and not as usual."""
    facts = []
    if (images := declared.preprocessing) is not None:
        facts.append(f"- Images: {shown_size(images)}")
        facts.append(f"- Mean: {', '.join(map(str, images.mean))}")
        facts.append(f"- Standard deviation: {', '.join(map(str, images.std))}")
    if model.in_channels != 3:
        facts.append(f"- Channels: {model.in_channels}")
    if declared.window_padding == "mask":
        facts.append('- Windows: `window_padding="mask"`')
    return [*facts, ""] if facts else []


def _timm(repository: str, declared: Declared) -> list[str]:
    lines = [
        "```python",
        "import timm",
        "",
        f'model = timm.create_model("hf-hub:{repository}", pretrained=True)',
        "```",
    ]
    if declared.window_padding == "mask":
        lines += ["", "timm pads windows with zeros: it computes the same where 7 x 7 windows tile every map."]
    return [*lines, ""]


def _classes(names: tuple[str, ...]) -> list[str]:
    lines = ["## Classes", "", *(f"    {i} {shown(name)}" for i, name in enumerate(names[:MOST_NAMES])), ""]
    return [*lines, "`label_names` of `config.json` lists all.", ""] if len(names) > MOST_NAMES else lines
