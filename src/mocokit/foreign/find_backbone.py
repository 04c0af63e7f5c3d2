"""Find the backbone in another project's checkpoint: which of its tensors, and of which network."""

import fnmatch
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mocokit.data.augment.recipes import EVAL_CROP_RATIO
from mocokit.foreign.architecture import SMALL_PADDINGS, Fit, fit_architecture, fit_to, wanted_shapes
from mocokit.foreign.evidence import (
    Evidence,
    Fact,
    Hints,
    find_heads,
    find_image_size,
    find_normalisation,
    find_padding,
)
from mocokit.foreign.naming import has_shortcut_names, rename_backbone
from mocokit.foreign.projects import name_project, preference
from mocokit.foreign.reading import read_checkpoint
from mocokit.foreign.weights import WRAPPERS, Group, State, find_groups, plain_settings, shorten
from mocokit.settings import require

ANCHORS = re.compile(r"(|.*\.)(?:layer1\.0\.conv1|patch_embed\.proj|patch_embed\.projection|conv_proj)\.weight")
"""Name of a weight that each ResNet or ViT has once; group 1: what stands before the network's own names."""

CHILD_ANCHOR = re.compile(r"(|.*\.)\d+\.0\.conv1\.weight")
"""The same for a ResNet in nn.Sequential, which has "0.weight" too."""

SMALL_IMAGE_PX = 64
"""Images up to this size are evaluated whole: there is no border to crop."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Place in a checkpoint where a network's names begin."""

    group: Group
    prefix: str
    """Start of the network's names in the group; empty, or ending in a dot."""

    @property
    def path(self) -> str:
        """Place in the checkpoint, as `--prefix` takes it."""
        return f"{self.group.path}.{self.prefix}" if self.group.path else self.prefix


@dataclass(frozen=True, kw_only=True)
class ForeignBackbone:
    """A backbone from another project's checkpoint, and all that was found out about it."""

    project: str
    """Project that wrote the checkpoint."""
    path: str
    """Place of its weights in the checkpoint, such as "state_dict.encoder_q."."""
    arch: str
    stem: str
    weights: State
    """Its state dict, complete, under torchvision's or timm's names."""
    image_size: int
    eval_crop_ratio: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    facts: tuple[Fact, ...]
    """Answers to what weights do not tell, each with its source."""
    wrappers: tuple[str, ...]
    """Parts that were taken out of names, such as "module" and "_orig_mod"."""
    left_out: dict[str, int]
    """Part that is not the backbone, such as "projector" -> number of its tensors."""
    others: tuple[str, ...]
    """Places of other networks in the file that were not taken."""


def find_backbone(source: str | Path | Mapping[str, Any], hints: Hints | None = None) -> ForeignBackbone:
    """Return the backbone in another project's checkpoint.

    Args:
        source: File of torch or safetensors, or its content; no code in a file is run.
        hints: Facts that the user knows; None: none.

    Raises:
        ValueError: The file can't be read, no backbone fits, several do, or nothing tells padding or heads.

    """
    hints = hints or Hints()
    if isinstance(source, Mapping):
        content = dict(source)
        settings = plain_settings(content)
    else:
        path = Path(source).expanduser()
        content = read_checkpoint(path)
        settings = {**plain_settings(content), **_neighbour_settings(path)}
    groups = _find_groups(content, hints.ignore)
    candidates = _find_candidates(groups, "" if hints.arch is None else hints.prefix)
    chosen, fit, others = _choose(candidates, hints.arch, hints.prefix)
    group = chosen.group
    evidence = Evidence(project=name_project(group.state, chosen.prefix), settings=settings, state=group.state)
    stem, arch, facts = _resolve(fit, evidence, chosen, hints)
    size = find_image_size(evidence, hints.image_size, fit.vit, small=fit.small)
    normalisation, mean, std = find_normalisation(evidence, hints.mean, hints.std)
    side = size.value
    assert isinstance(side, int)
    return ForeignBackbone(
        project=evidence.project,
        path=chosen.path,
        arch=arch,
        stem=stem,
        weights=_checked_weights(fit, arch, stem, chosen.path),
        image_size=side,
        eval_crop_ratio=1.0 if fit.small or side <= SMALL_IMAGE_PX else EVAL_CROP_RATIO,
        mean=mean,
        std=std,
        facts=(*facts, size, normalisation),
        wrappers=group.wrappers,
        left_out=_count_left_out(chosen, fit, others, groups),
        others=tuple(other.path or "(no prefix)" for other in others),
    )


def _neighbour_settings(path: Path) -> dict[str, object]:
    """Return the settings in solo-learn's `args.json` beside a checkpoint; empty if there is none."""
    neighbour = path.with_name("args.json")
    if not neighbour.is_file() or neighbour.stat().st_size > 2**20:
        return {}
    try:
        return {f"args.json.{name}": value for name, value in plain_settings(json.loads(neighbour.read_text())).items()}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{neighbour}: not readable as JSON ({error}); remove it, or mend it") from error


def _find_groups(content: Mapping[str, Any], ignore: Sequence[str]) -> list[Group]:
    """Return the dictionaries of tensors, without the names that a pattern of `ignore` matches.

    Raises:
        ValueError: The checkpoint holds no weights, or mocokit wrote it.

    """
    if "method" in content and "step" in content and isinstance(content["method"], dict):
        raise ValueError("mocokit wrote this checkpoint; use its run folder, or the backbone.safetensors in it")
    groups = [_without(group, ignore) for group in find_groups(content)]
    groups = [group for group in groups if group.state]
    if not groups:
        raise ValueError(f"holds no weights; its keys are {shorten(list(map(str, content)))}")
    return groups


def _find_candidates(groups: list[Group], given: str | None) -> list[Candidate]:
    """Return all places where a ResNet's or a ViT's names begin; if there are none, where names begin with `given`."""
    candidates = dict[tuple[str, str], Candidate]()
    for group in groups:
        for name in group.state:
            match = ANCHORS.fullmatch(name) or CHILD_ANCHOR.fullmatch(name)
            if match and (ANCHORS.fullmatch(name) or f"{match[1]}0.weight" in group.state):
                candidates[group.path, match[1]] = Candidate(group=group, prefix=match[1])
    if candidates:
        return list(candidates.values())
    start = with_dot(given or "")
    for group in groups:  # another architecture, which the user names
        inside = start.removeprefix(f"{group.path}.")
        if any(name.startswith(inside) for name in group.state):
            return [Candidate(group=group, prefix=inside)]
    largest = max(groups, key=lambda group: len(group.state))
    return [Candidate(group=largest, prefix="")]  # to compare it as it is, for the message


def with_dot(prefix: str) -> str:
    """Return the start of names that a user gave, ending in a dot and without wrappers."""
    parts = [part for part in prefix.split(".") if part and part not in WRAPPERS]
    return "".join(f"{part}." for part in parts)


def _without(group: Group, ignore: Sequence[str]) -> Group:
    """Return the group without the names that a pattern matches."""
    kept = {
        name: value
        for name, value in group.state.items()
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore)
    }
    return Group(path=group.path, state=kept, wrappers=group.wrappers)


def _choose(
    candidates: list[Candidate], arch: str | None, prefix: str | None
) -> tuple[Candidate, Fit, list[Candidate]]:
    """Return the network that is taken, the architecture that it fits, and the other networks.

    Raises:
        ValueError: The best network fits no backbone, or several are as good and differ.

    """
    named = _named(candidates, prefix)
    best = min(preference(candidate.path) for candidate in named)
    equals = [candidate for candidate in named if preference(candidate.path) == best]
    equals.sort(key=lambda candidate: len(candidate.path))
    first = equals[0]
    fits = []
    for candidate in equals:
        state = own_state(candidate, candidates)
        try:
            fits.append(fit_to(state, arch) if arch else fit_architecture(state))
        except ValueError as error:
            place = f"at {candidate.path}: " if candidate.path else ""
            raise ValueError(f"{place}{error}{_advice(candidates)}") from error
    for candidate, fit in zip(equals[1:], fits[1:], strict=True):
        if not _is_same_network(fits[0], fit):
            places = ", ".join(other.path for other in equals)
            raise ValueError(f"several networks fit ({places}); choose one by --prefix {candidate.path}")
    others = [candidate for candidate in candidates if candidate not in equals]
    return first, fits[0], others


def _named(candidates: list[Candidate], prefix: str | None) -> list[Candidate]:
    """Return the candidates whose place is `prefix`, or begins with it; all of them for None."""
    if prefix is None:
        return candidates
    wanted = with_dot(prefix)
    exact = [one for one in candidates if wanted in (one.path, one.prefix)]
    found = exact or [one for one in candidates if one.path.startswith(wanted) or one.path.endswith(f".{wanted}")]
    places = ", ".join(repr(candidate.path) for candidate in candidates)
    require(bool(found), "prefix", prefix, f"no network begins there; there are {places}")
    return found


def _advice(candidates: list[Candidate]) -> str:
    """Return what a user can do about weights that do not fit."""
    if len(candidates) > 1:
        return f"; other networks in the file: {', '.join(other.path for other in candidates)} (--prefix)"
    return "; leave out what is not part of it by --ignore PATTERN"


def own_state(candidate: Candidate, candidates: Sequence[Candidate]) -> State:
    """Return a network's weights under torchvision's or timm's names, without networks inside its names."""
    inner = tuple(
        other.prefix
        for other in candidates
        if other.group is candidate.group and other.prefix != candidate.prefix
        if other.prefix.startswith(candidate.prefix)
    )
    length = len(candidate.prefix)
    state = {
        name[length:]: value
        for name, value in candidate.group.state.items()
        if name.startswith(candidate.prefix) and not (inner and name.startswith(inner))
    }
    return rename_backbone(state)


def _is_same_network(one: Fit, other: Fit) -> bool:
    """Return True if both hold the same weights, as mmselfsup's `backbone` and `base_encoder.0` do."""
    return one.weights.keys() == other.weights.keys() and all(
        torch.equal(value, other.weights[name]) for name, value in one.weights.items()
    )


def _resolve(fit: Fit, evidence: Evidence, chosen: Candidate, hints: Hints) -> tuple[str, str, list[Fact]]:
    """Return stem, backbone, and the facts that decided them."""
    padding = hints.padding
    heads = hints.heads
    if fit.vit is not None:
        require(padding is None, "padding", padding, "only a ResNet with a 3x3 first convolution has a choice of it")
        if hints.arch is not None and heads is None:
            return "imagenet", hints.arch, [Fact(name="heads", value=f"as {hints.arch} has", source="given")]
        fact = find_heads(evidence, heads, fit.vit, fit.weights)
        assert isinstance(fact.value, int)
        return "imagenet", fit.vit.arch(fact.value), [fact]
    require(heads is None, "heads", heads, "only a ViT has heads, and this is a ResNet")
    if not fit.small:
        require(padding is None, "padding", padding, "only a 3x3 first convolution has a choice of it; leave it out")
        return "imagenet", fit.arch, []
    names = {name.removeprefix(chosen.prefix): value for name, value in chosen.group.state.items()}
    fact = find_padding(evidence, padding, shortcut_names=has_shortcut_names(names))
    assert isinstance(fact.value, int)
    return SMALL_PADDINGS[fact.value], fit.arch, [fact]


def _checked_weights(fit: Fit, arch: str, stem: str, path: str) -> State:
    """Return the backbone's complete state dict.

    Raises:
        ValueError: A weight is no number, is infinite or not floating-point; or tensors overlap, so that the network
            would take more memory than the file has.

    """
    for name, value in fit.weights.items():
        if name.endswith("num_batches_tracked"):
            continue
        if not value.is_floating_point():
            raise ValueError(f"{path}{name} holds {value.dtype}, not floating-point weights")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{path}{name} has values that are NaN or infinite; take an earlier checkpoint")
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in fit.weights.values()}
    if sum(value.numel() * value.element_size() for value in fit.weights.values()) > sum(storages.values()):
        raise ValueError("its tensors share their memory, which no trained backbone's do")
    no_counter = torch.zeros((), dtype=torch.int64)  # old torch wrote no number of batches for BatchNorm
    complete = {name: fit.weights.get(name, no_counter) for name in wanted_shapes(arch, stem)}
    return {
        name: value.to(torch.float32 if value.is_floating_point() else torch.int64, copy=True).contiguous()
        for name, value in complete.items()
    }


def _count_left_out(chosen: Candidate, fit: Fit, others: list[Candidate], groups: list[Group]) -> dict[str, int]:
    """Return part -> number of tensors, of everything in the checkpoint's networks that is not the backbone."""
    counts = Counter[str]()
    for name in chosen.group.state:
        if not name.startswith(chosen.prefix):
            counts[name.split(".")[0]] += 1
    counts.update(f"{chosen.prefix}{name.split('.')[0]}" for name in fit.heads)
    for other in others:
        if other.group is not chosen.group:
            counts[other.path.rstrip(".")] += sum(name.startswith(other.prefix) for name in other.group.state)
    holders = [chosen.group, *(other.group for other in others)]
    for group in groups:
        if not any(group is holder for holder in holders):
            counts[group.path or "(no prefix)"] += len(group.state)
    return dict(counts)
