"""The card beside an exported file: its run and data, its measured accuracies, and how exactly it was reproduced."""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mocokit.engine.agreement import weights_digest
from mocokit.engine.backbone_file import LoadedBackbone
from mocokit.engine.run_folder import RunFolder
from mocokit.export.proof import Proof
from mocokit.export.targets import Exported

HUB_HEADER = """\
---
library_name: timm
pipeline_tag: image-feature-extraction
tags: [mocokit, self-supervised, moco]
---
"""
"""Metadata that huggingface.co reads from the top of a README.md."""

VERSIONS = ("mocokit", "python", "torch", "torchvision")
"""Entries of environment.toml that the card repeats."""


def describe(loaded: LoadedBackbone, exported: Exported, *, target: str, proof: Proof, images: str) -> dict[str, Any]:
    """Return the content of the card as plain values, ready for JSON.

    Args:
        loaded: The exported backbone.
        exported: Files that the target wrote.
        target: Name of the target.
        proof: Differences between the readers' features and mocokit's.
        images: Description of the images of the proof.

    """
    weights = weights_digest(loaded.backbone)[:12]
    rows = _evaluation(loaded.path.parent / "evaluation.json")
    return {
        "target": target,
        "backbone": asdict(loaded.card),
        "run": describe_run(loaded),
        "evaluation": [row for row in rows if row.get("weights", weights) == weights],  # not those of an earlier step
        "proof": {
            "images": images,
            "largest_difference": proof.differences,
            "allowed": proof.allowed,
            "rounding": proof.rounding,
        },
        "files": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in exported.files},
        "usage": exported.usage,
        "notes": list(exported.notes),
    }


def describe_run(loaded: LoadedBackbone) -> dict[str, Any]:
    """Return settings, data and versions of the run folder around a backbone; empty for a lone file."""
    folder = RunFolder(loaded.path.parent)
    if loaded.path != folder.backbone or not folder.config.is_file():
        return {}
    config = tomllib.loads(folder.read_config())  # read as values: the run's method may be unknown here
    resolved = _read_toml(folder.resolved)
    return {
        "folder": folder.path.resolve().name,
        "config_sha256": hashlib.sha256(folder.config.read_bytes()).hexdigest(),
        "seed": config["run"]["seed"],
        "epochs": config["optim"]["epochs"],
        "global_batch_size": config["data"]["global_batch_size"],
        "data": Path(config["data"]["source"]).name,
        "num_images": resolved.get("num_images"),
        "data_names_sha256": resolved.get("names_sha256"),
        "data_identity": resolved.get("data_identity"),
        "total_steps": resolved.get("total_steps"),
        "versions": {name: value for name, value in _read_toml(folder.environment).items() if name in VERSIONS},
    }


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); put it back, or delete it to export without it") from error


def _evaluation(path: Path) -> list[dict[str, Any]]:
    """Return the rows that `mocokit evaluate` wrote into the run folder, with names of data sets but no paths."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    places = [{key: Path(row[key]).name for key in ("data", "test") if row.get(key)} for row in rows]
    return [row | names for row, names in zip(rows, places, strict=True)]


def write_card(out: Path, facts: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write the card as Markdown and as JSON: into `out` if it is a folder, else beside it; return both paths."""
    if out.is_dir():
        text = out / "README.md"
        values = out / "mocokit.json"
    else:
        text = out.with_name(out.name + ".md")
        values = out.with_name(out.name + ".json")
    header = HUB_HEADER if facts["target"] == "huggingface" else ""
    text.write_text(header + render(out.name, facts), encoding="utf-8")
    values.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return text, values


def render(name: str, facts: Mapping[str, Any]) -> str:
    """Return the card of the file or folder `name` as Markdown."""
    card = facts["backbone"]
    run = facts["run"]
    proof = facts["proof"]
    trained = f"imported: {card['origin']}" if card["origin"] else "pre-trained with momentum contrast by mocokit"
    lines = [f"# {name}", "", f"{card['arch']} (stem {card['stem']}), {trained}, {card['step']:,} steps.", ""]
    lines += ["```", facts["usage"], "```", ""]
    lines += [
        f"Input: RGB, {card['image_size']} px, scaled to 0..1, minus {card['mean']}, divided by {card['std']}.",
        *(
            f"Samples of type {name}: {low:g} to {high:g} become 0 to 255 first, clipped."
            for name, (low, high) in card["value_ranges"].items()
        ),
        *facts["notes"],
        "",
        "## Same output as mocokit's",
        "",
        f"Largest absolute difference of any feature, on {proof['images']}; {proof['allowed']:.1e} is allowed, "
        f"{proof['rounding']:.1e} is between float32 and float64 of mocokit itself:",
        "",
        *(f"- {reader}: {difference:.1e}" for reader, difference in proof["largest_difference"].items()),
        "",
        "## Measured",
        "",
        *([_result(row) for row in facts["evaluation"]] or ["Not evaluated yet; `mocokit evaluate RUN` does."]),
        "",
        "## Where it comes from",
        "",
        *([f"- {key}: {value}" for key, value in run.items()] or _origin_of_lone_file(card)),
        *(f"- sha256 of {file}: {digest}" for file, digest in facts["files"].items()),
    ]
    return "\n".join(lines) + "\n"


def _result(row: Mapping[str, Any]) -> str:
    """Return one line of an evaluation: the accuracy, and on which images it was measured."""
    data = f"{row.get('data', 'unknown')} ({row.get('data_id', '')[:12] or 'identity unknown'})"
    test = f"{row['test']} ({row.get('test_id', '')[:12] or 'identity unknown'})" if row.get("test") else ""
    result = f"- {row['protocol']}, {row['features']}: {100 * row['accuracy']:.1f} %"
    return f"{result} on {row.get('test_images', 0):,} images of {test or 'a held-out tenth'}, labels from {data}"


def _origin_of_lone_file(card: Mapping[str, Any]) -> list[str]:
    """Return the lines about the training images of a backbone without its run folder."""
    if not card["data"]:
        return ["No run folder beside the weights, and the file does not name its images."]
    return [f"- data: {card['data']}", f"- data_identity: {card['data_identity']}"]
