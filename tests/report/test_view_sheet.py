from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mocokit.report.view_sheet import MARGIN_PX, save_view_sheet


def test_a_sheet_shows_query_key_and_local_crops_side_by_side(tmp_path: Path) -> None:
    query = torch.full((2, 3, 64, 64), 10, dtype=torch.uint8)
    key = torch.full((2, 3, 64, 64), 20, dtype=torch.uint8)
    local = torch.tensor([30, 40], dtype=torch.uint8).view(1, 2, 1, 1, 1).expand(2, 2, 3, 24, 24)
    save_view_sheet(tmp_path / "views.png", query, key, local, num_columns=1)
    sheet = np.asarray(Image.open(tmp_path / "views.png"))[..., 0]
    assert sheet.shape == (2 * (64 + MARGIN_PX) + MARGIN_PX, 2 * 64 + 2 * 24 + 2 * MARGIN_PX)
    for top in (MARGIN_PX, 2 * MARGIN_PX + 64):
        row = sheet[top, MARGIN_PX:-MARGIN_PX].tolist()
        assert row == [10] * 64 + [20] * 64 + [30] * 24 + [40] * 24
        assert set(sheet[top + 24, MARGIN_PX + 128 :].tolist()) == {255}, "below a crop there is nothing"
