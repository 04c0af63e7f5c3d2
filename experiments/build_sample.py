"""Cut the embedded sample from scikit-image's photographs. It was run once; its result is committed.

    python experiments/build_sample.py src/mocokit/sample

Thirteen photographs (materials, tissue, stars, a cat ...) are cut into tiles of 48x48 pixels. The class of a tile is
its photograph. Of every four blocks of 96x96 pixels, two go to train, one to val and one to test. Tiles overlap only
within a block, so no pixel is in two parts. Settings are chosen on val; test is for the final number.
"""

import argparse
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PHOTOGRAPHS = {  # name: licence, according to scikit-image
    "astronaut": "NASA, public domain",
    "brick": "CC0, cc0textures.com",
    "camera": "CC0, Lav Varshney",
    "cat": "CC0, Stefan van der Walt",
    "cell": "CC0, Paul Mueller",
    "coffee": "CC0, Rachel Michetti",
    "coins": "no known copyright restrictions, Brooklyn Museum",
    "grass": "CC0, linolafett",
    "gravel": "CC0, cc0textures.com",
    "hubble_deep_field": "NASA, public domain",
    "immunohistochemistry": "no known copyright restrictions, CMMI",
    "retina": "CC0, Haeggstroem 2014",
    "rocket": "CC0, SpaceX",
}
TILE_PX = 48
BLOCK_PX = 96
STRIDE_PX = {"train": 16, "val": 24, "test": 24}
MIN_STD = 6.0  # grey levels; a flatter tile (black sky, empty slide) could be from any photograph
MAX_TILES = {"train": 250, "val": 100, "test": 100}  # of each photograph
PARTS = ("train", "train", "val", "test")


def tiles_of(pixels: NDArray[np.uint8]) -> dict[str, list[NDArray[np.uint8]]]:
    """Return the tiles of one photograph (H, W, 3) for each part."""
    tiles: dict[str, list[NDArray[np.uint8]]] = {part: [] for part in PARTS}
    height, width = pixels.shape[:2]
    for block_row in range(height // BLOCK_PX):
        for block_column in range(width // BLOCK_PX):
            part = PARTS[(block_row * 2 + block_column) % 4]
            stride = STRIDE_PX[part]
            for top in range(block_row * BLOCK_PX, block_row * BLOCK_PX + TILE_PX + 1, stride):
                for left in range(block_column * BLOCK_PX, block_column * BLOCK_PX + TILE_PX + 1, stride):
                    tile = pixels[top : top + TILE_PX, left : left + TILE_PX]
                    if tile.std() >= MIN_STD:
                        tiles[part].append(tile)
    return tiles


def main() -> None:
    """Write photo_tiles_{train,val,test}.zip."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    from skimage import data  # of the extra `bench`

    rng = np.random.default_rng(0)
    archives = {part: zipfile.ZipFile(out / f"photo_tiles_{part}.zip", "w") for part in set(PARTS)}
    for name in PHOTOGRAPHS:
        image = Image.fromarray(getattr(data, name)()).convert("RGB")
        image.thumbnail((1000, 1000), Image.Resampling.LANCZOS)
        for part, tiles in tiles_of(np.asarray(image)).items():
            chosen = sorted(rng.permutation(len(tiles))[: MAX_TILES[part]])
            for number, index in enumerate(chosen):
                file = BytesIO()
                Image.fromarray(tiles[index]).save(file, "JPEG", quality=92, subsampling=0)
                member = zipfile.ZipInfo(
                    f"{name}/{number:03d}.jpg"
                )  # with a fixed date, so that the archive has the same bytes each time
                archives[part].writestr(member, file.getvalue())
            print(f"{name:22} {part:5} {len(chosen)}")
    for archive in archives.values():
        archive.close()


if __name__ == "__main__":
    main()
