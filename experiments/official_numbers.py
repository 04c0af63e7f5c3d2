"""Compare every number of the presets with the official code's, and write docs/official_numbers.md.

python experiments/official_numbers.py

The official numbers are facts in official_numbers.toml. Ours are read from the presets, or measured on the networks,
optimizers and losses that the presets build.
"""

import argparse
import functools
import math
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mocokit.config.presets import PRESETS, get_preset
from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings
from mocokit.engine.lars import Lars
from mocokit.engine.precision import Precision
from mocokit.methods.contract import Method
from mocokit.nets.encoder import Encoder
from mocokit.nets.grouped_batchnorm import GroupedBatchNorm
from mocokit.report.text_tables import markdown_columns
from mocokit.run.build import build_encoder, build_trained
from mocokit.run.build_views import build_recipes

FACTS = Path(__file__).parent / "official_numbers.toml"
PAGE = Path(__file__).parent.parent / "docs" / "official_numbers.md"

HEAD = """\
# Presets and the official code, number by number

Each row is a fact of the official code, with the place where it is written, and our number.
`experiments/official_numbers.py` wrote this page from `experiments/official_numbers.toml` and from the presets; ours
are read from the settings or measured on the networks, optimizers and losses that the presets build. A test demands
that every setting of every preset has a row, that a row without a reason is equal, and that one with a reason is not.
Learning rates are compared step by step with the official formulas in `tests/engine/test_schedules.py`.
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of the official code for one preset."""

    preset: str
    source: str
    name: str
    official: object
    where: str
    why: str
    """Why ours differs; empty: it is equal."""

    @property
    def is_measured(self) -> bool:
        """True if ours is a number; else `why` says what we do instead."""
        return "." in self.name


def read_rows() -> Iterator[Row]:
    """Yield the rows of all presets."""
    for group in tomllib.loads(FACTS.read_text(encoding="utf-8"))["groups"].values():
        for preset in group["presets"]:
            for name, official, where, *why in group["rows"]:
                yield Row(
                    preset=preset,
                    source=group["source"],
                    name=name,
                    official=official,
                    where=where,
                    why=why[0] if why else "",
                )


def our_value(preset: str, name: str) -> object:
    """Return our number of that name."""
    section, _, field = name.partition(".")
    config = get_preset(preset)
    if section in ("query", "key"):
        query, key = (asdict(recipe) for recipe in build_recipes(config.augment))
        if name == "key.all":
            return "as query" if query == key else "other"
        if name == "key.others":
            same = [value == key[other] for other, value in query.items() if other not in ("blur_p", "solarize_p")]
            return "as query" if all(same) else "other"
        return {"query": query, "key": key}[section][field]
    if section in MEASURES:
        return MEASURES[section](preset, field)
    return getattr(getattr(config, section), field)


def is_equal(ours: object, official: object) -> bool:
    """Return True if two numbers, lists of numbers or texts are equal, but for rounding."""
    if isinstance(official, list):
        assert isinstance(ours, tuple)
        return len(ours) == len(official) and all(map(is_equal, ours, official))
    if isinstance(official, bool | str) or isinstance(ours, bool | str):
        return ours == official
    assert isinstance(ours, int | float) and isinstance(official, int | float), (ours, official)
    return math.isclose(ours, official, rel_tol=1e-9, abs_tol=1e-12)


@functools.cache
def _network(preset: str) -> Encoder:
    """Return the preset's network without memory for weights."""
    with torch.device("meta"):
        return build_encoder(get_preset(preset))


@functools.cache
def _small(preset: str) -> tuple[Config, Method[Any], torch.optim.Optimizer]:
    """Return method and optimizer of the preset on a small network, where only their kind counts."""
    settings: dict[str, object] = {
        "data.image_size": 32,
        "data.global_batch_size": 32,
        "model.arch": "timm/test_vit" if "vit" in preset else "resnet10_w64",
        "model.stem": "imagenet",
        "model.dim": 16,
        "run.precision": "fp32",
    }
    smaller = {"method.queue_size": 64, "method.num_negatives": 16, "model.head_width": 512}
    method = get_preset(preset).method
    settings |= {
        name: value
        for name, value in smaller.items()
        if not name.startswith("method.") or hasattr(method, name.removeprefix("method."))
    }
    if method.name not in ("moco-v3", "fast-moco"):
        settings.pop("model.head_width")
    config = replace_settings(get_preset(preset), settings)
    cpu = torch.device("cpu")
    built, optimizer = build_trained(
        config, Precision("fp32", cpu), cpu, mean=(0.5,) * 3, std=(0.5,) * 3, num_images=100, total_steps=10
    )
    return config, built, optimizer


def describe_layers(network: nn.Module) -> str:
    """Return the layers of a head in words."""
    words = []
    for layer in [network] if isinstance(network, nn.Linear) else network.children():
        if isinstance(layer, nn.Linear):
            bias = "" if layer.bias is not None else " (no bias)"
            words.append(f"Linear {layer.in_features}-{layer.out_features}{bias}")
        elif isinstance(layer, nn.BatchNorm1d | GroupedBatchNorm):
            frozen = not layer.affine or not layer.bias.requires_grad
            lacks = [*(["no scale"] if not layer.affine else []), *(["no shift"] if frozen else [])]
            words.append("BatchNorm" + (f" ({', '.join(lacks)})" if lacks else ""))
        else:
            words.append(type(layer).__name__)
    return ", ".join(words)


def _of_network(preset: str, name: str) -> object:
    encoder = _network(preset)
    if name in ("head", "predictor"):
        return describe_layers(getattr(encoder, name))
    if name == "head_std":
        linear = [m for m in _small(preset)[1].encoder_q.head.modules() if isinstance(m, nn.Linear)]
        return round(float(torch.cat([layer.weight.detach().flatten() for layer in linear]).std()), 3)
    if name == "vit_heads":
        return encoder.backbone.blocks[0].attn.num_heads  # type: ignore[index,union-attr]
    if name == "vit_depth":
        return len(encoder.backbone.blocks)  # type: ignore[arg-type]
    kind, field = name.split("_")
    norms = [m for m in encoder.modules() if isinstance(m, {"bn": GroupedBatchNorm, "ln": nn.LayerNorm}[kind])]
    (value,) = {getattr(norm, field) for norm in norms}
    return value


def _of_optimizer(preset: str, name: str) -> object:
    config, method, optimizer = _small(preset)
    names = {parameter: where for where, parameter in method.named_parameters()}
    vectors = {p for p in names if p.requires_grad and p.ndim <= 1}

    def parts(holds: Callable[[dict[str, Any]], bool]) -> object:
        chosen = {p for group in optimizer.param_groups if holds(group) for p in group["params"]}
        predictor = {p for p, where in names.items() if ".predictor." in where}
        kinds = {"nothing": set[nn.Parameter](), "biases and BatchNorm": vectors, "predictor": predictor}
        return next((kind for kind, members in kinds.items() if chosen == members), "other")

    if name == "not_decayed":
        return parts(lambda group: group["weight_decay"] != config.optim.weight_decay)
    if name == "not_adapted":
        assert isinstance(optimizer, Lars)
        return parts(lambda group: not group["adapts"])
    if name == "constant_rate":
        return parts(lambda group: "constant_lr" in group)
    return optimizer.param_groups[0][name]


def _of_loss(preset: str, name: str) -> float:
    """Return the loss by chance over the log of the number of candidates: directions times factor."""
    config, method, _ = _small(preset)
    batch = config.data.global_batch_size
    candidates = {
        "moco": getattr(config.method, "queue_size", 0) + 1,
        "memory-bank": getattr(config.method, "num_negatives", 0) + 1,
        "simclr": 2 * batch - 1,
    }
    assert name == "factor"
    return method.chance_loss / math.log(candidates.get(config.method.name, batch))


MEASURES: dict[str, Callable[[str, str], object]] = {
    "net": _of_network,
    "optimizer": _of_optimizer,
    "loss": _of_loss,
}


def render() -> str:
    """Return the page: a table for each preset."""
    rows = list(read_rows())
    parts = [HEAD]
    for preset in PRESETS:
        own = [row for row in rows if row.preset == preset]
        sources = ", ".join(f"`{row}`" for row in dict.fromkeys(row.source for row in own))
        cells = [
            [
                row.name,
                _in_words(row.official),
                row.where,
                _in_words(our_value(preset, row.name)) if row.is_measured else "",
                row.why or "equal",
            ]
            for row in own
        ]
        table = markdown_columns(["what", "official", "where", "ours", "equal, or why not"], cells)
        parts.append(f"## {preset}\n\nSource: {sources}.\n\n{table}\n")
    return "\n".join(parts)


def _in_words(value: object) -> str:
    if isinstance(value, tuple | list):
        return " ".join(_in_words(part) for part in value) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
