from pathlib import Path

from PIL import Image

from mocokit.reproduction.figures import draw_curves, new_figure, plot_table
from tests.reproduction.small_table import filled, small_table


def test_the_plot_has_a_measured_side_only_if_there_are_numbers(tmp_path: Path) -> None:
    widths = []
    for name, values in (("paper", {}), ("both", {"T=0.1": {"linear": [70.0, 74.0]}, "T=0.2": {"linear": [75.0]}})):
        plot_table(filled(values), tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as image:
            widths.append(image.width)
    assert widths[1] == 2 * widths[0]


def test_error_bars_are_the_sample_standard_deviation() -> None:
    axes = new_figure(3, 3).subplots()
    draw_curves(axes, small_table().cells, {"T=0.1": [70.0, 72.0, 74.0], "T=0.2": [75.0]}, small_x=True)
    (bars,) = axes.containers[0].lines[2]  # type: ignore[attr-defined]
    first, second = ([y for _, y in segment] for segment in bars.get_segments())
    assert (first, second) == ([70.0, 74.0], [75.0, 75.0])
