"""Import the checkpoints of `foreign_projects.py`, and write the table of docs/tables/import.md.

python experiments/import_table.py
"""

import tempfile
import warnings
from pathlib import Path

import torch
from foreign_checkpoints import Row
from foreign_projects import TABLE

import mocokit

OUT = Path(__file__).parent.parent / "docs" / "tables" / "import.md"

HEAD = """# Checkpoints of other projects

Written by `python experiments/import_table.py`. lightly, torch, torchvision and timm build the real models; the other
projects' modules are put together with their names. The difference is the largest between features of the original
network and of the imported backbone, on 3 random images, as a part of the largest feature. ViTs have 2 blocks.

| project | method | file | result |
|---|---|---|---|
"""


def try_row(row: Row, folder: Path) -> str:
    """Return the result of one import: the difference of features, or the reason of the refusal."""
    torch.manual_seed(0)
    checkpoint = row.build()
    path = checkpoint.save(folder)
    out = folder / "ours.safetensors"
    out.unlink(missing_ok=True)
    try:
        found = mocokit.import_backbone(path, out, **checkpoint.flags)
    except ValueError as error:
        return f"refused: {str(error).removeprefix(f'checkpoint={path}: ')}"
    images = torch.randn(3, 3, checkpoint.image_size, checkpoint.image_size)
    with torch.no_grad():
        theirs = checkpoint.net(images).flatten(1)
        ours = mocokit.load_backbone(out).backbone(images)
    share = float((theirs - ours).abs().max() / theirs.abs().max())
    name = found.card.arch if found.card.stem == "imagenet" else f"{found.card.arch}, stem {found.card.stem}"
    return f"imported as `{name}`, difference {share:.0e}" if share else f"imported as `{name}`, features equal"


def main() -> None:
    """Write the table."""
    warnings.simplefilter("ignore")
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for row in TABLE:
            lines.append(f"| {row.project} | {row.method} | {row.file} | {try_row(row, Path(folder))} |")
            print(lines[-1], flush=True)
    OUT.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
