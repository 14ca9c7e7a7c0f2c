"""The part of a card that says how a direction is used: with wsmerge, with PEFT, with mergekit."""

from __future__ import annotations

import re

from wsmerge.core.text import escaped_json, fenced
from wsmerge.registry.manifest import Manifest

__all__ = ["render_usage"]


def render_usage(manifest: Manifest, *, repo: str | None, adapter: bool) -> str:
    """The section in Markdown.

    Args:
        manifest: of the direction.
        repo: `owner/name` of the repository that the card is for; None for a folder.
        adapter: whether the payload is a PEFT adapter.
    """
    reference = f"{repo}@{manifest.version}" if repo else manifest.label
    bring = f"wsmerge pull {reference}" if repo else "wsmerge publish ./FOLDER      # this folder, into the local store"
    recipe = f"base_model: {_yaml_text(manifest.base.model)}\ndirections:\n  - direction: {reference}\n    weight: 0.5\nout_dtype: bfloat16"
    pulled = f'wsmerge.pull("{reference}")\n' if repo else ""
    blocks = [
        "On the command line:",
        fenced("console", f"{bring}\nwsmerge merge recipe.yaml steered/"),
        "with `recipe.yaml`:",
        fenced("yaml", recipe),
        "In Python:",
        fenced("python", f'import wsmerge\n\n{pulled}with wsmerge.steer(model, {{"{reference}": 0.5}}):\n    ...'),
    ]
    return "\n\n".join([*blocks, *(_as_adapter(manifest, repo) if adapter else _exported())])


def _as_adapter(manifest: Manifest, repo: str | None) -> list[str]:
    tag = f"v{manifest.version}"
    place, lora = (f'"{repo}", revision="{tag}"', f"{repo}@{tag}") if repo else ("FOLDER", "./FOLDER")
    recipe = (
        f"merge_method: task_arithmetic\nbase_model: {_yaml_text(manifest.base.model)}\nmodels:\n"
        f"  - model: {_yaml_text(f'{manifest.base.model}+{lora}')}\n    parameters:\n      weight: 0.5\ndtype: bfloat16"
    )
    return [
        "Without wsmerge, with PEFT, as a LoRA adapter at `k` = 1:",
        fenced("python", f"from peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base_model, {place})"),
        "With mergekit, where the weight is `k` (it rounds what it adds):",
        fenced("yaml", recipe),
    ]


def _exported() -> list[str]:
    return [
        "For mergekit and PEFT it is exported first, with its coefficients:",
        fenced("console", "wsmerge export mergekit recipe.yaml exported/"),
    ]


def _yaml_text(text: str) -> str:
    """`text` as a scalar of YAML: as it is, or in JSON's quotes, which YAML reads too."""
    return text if re.fullmatch(r"[A-Za-z_./][\w./+@-]*", text, re.ASCII) else escaped_json(text)
