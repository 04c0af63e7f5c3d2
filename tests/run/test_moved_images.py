"""A run goes on when its images moved: `resume` says how, and takes the new place."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import mocokit
from mocokit.cli import main
from mocokit.config.toml import from_toml
from mocokit.engine.checkpoint import list_checkpoints
from tests.conftest import TINY
from tests.run_process import final_state


def _zipped(photos: Path) -> Path:
    return Path(shutil.make_archive(str(photos), "zip", photos))


def _listed(photos: Path) -> Path:
    """Write a list with absolute paths beside the images."""
    names = sorted(photos.rglob("*.jpg"))
    listed = photos.with_name(photos.name + ".csv")
    listed.write_text("path,label\n" + "".join(f"{name},{name.parent.name}\n" for name in names))
    return listed


def _folder(photos: Path) -> Path:
    return photos


KINDS = {"folder": _folder, "zip": _zipped, "list": _listed}


@pytest.fixture(params=KINDS)
def moved(request: pytest.FixtureRequest, own_photos: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run with one of two epochs done, and the place that its images moved to."""
    kind: Callable[[Path], Path] = KINDS[request.param]
    settings = {**TINY, "data.source": str(kind(own_photos))}
    mocokit.pretrain("moco-v2-small", settings=settings, out=tmp_path / "run")
    list_checkpoints(tmp_path / "run" / "checkpoints")[-1].unlink()
    (tmp_path / "disk").mkdir()
    own_photos.rename(tmp_path / "disk" / "pictures")
    own_photos.with_suffix(".zip").unlink(missing_ok=True)
    return tmp_path / "run", kind(tmp_path / "disk" / "pictures")


def test_the_error_names_the_flag_and_the_flag_goes_on(
    moved: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, place = moved
    before = (run / "config.toml").read_text()
    assert main(["resume", str(run)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.endswith(f"if the run's images moved, say where they are now: mocokit resume {run} --data PLACE\n")
    assert main(["resume", str(run), "--data", str(place.parent / "nowhere")]) == 1
    assert "nowhere: no such file or folder\n" in capsys.readouterr().err
    assert (run / "config.toml").read_text() == before
    assert main(["resume", str(run), "--data", str(place)]) == 0
    assert from_toml((run / "config.toml").read_text()).data.source == str(place)
    assert from_toml(final_state(run)["config"]).data.source == str(place)
    assert f"data.source: now {place}, until now" in (run / "log.txt").read_text()
    assert main(["resume", str(run)]) == 0, "the new place is the run's"


def test_other_images_at_the_new_place_are_refused_and_nothing_is_recorded(
    tmp_path: Path, photos: Path, own_photos: Path
) -> None:
    mocokit.pretrain("moco-v2-small", settings={**TINY, "data.source": str(photos)}, out=tmp_path / "run")
    before = (tmp_path / "run" / "config.toml").read_text()
    (own_photos / "cat" / "000.jpg").rename(own_photos / "cat" / "zebra.jpg")
    with pytest.raises(ValueError, match=r"the images changed .*1 removed .*1 added \(cat/zebra.jpg\)"):
        mocokit.resume(tmp_path / "run", data=own_photos)
    assert (tmp_path / "run" / "config.toml").read_text() == before
    mocokit.resume(tmp_path / "run", data=own_photos, accept_changes=True)
    assert from_toml((tmp_path / "run" / "config.toml").read_text()).data.source == str(own_photos)


def test_test_images_that_moved_have_a_flag_of_their_own(
    tmp_path: Path, photos: Path, own_photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**TINY, "data.source": str(photos), "data.test": str(own_photos), "run.knn_every": 1}
    run = tmp_path / "run"
    mocokit.pretrain("moco-v2-small", settings=settings, out=run)
    own_photos.rename(tmp_path / "tested")
    assert main(["resume", str(run)]) == 1
    assert f"mocokit resume {run} --test PLACE" in capsys.readouterr().err
    assert main(["resume", str(run), "--test", str(tmp_path / "tested")]) == 0
    assert from_toml((run / "config.toml").read_text()).data.test == str(tmp_path / "tested")


def test_an_export_says_that_the_runs_images_moved(
    tmp_path: Path, own_photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    mocokit.pretrain("moco-v2-small", settings={**TINY, "data.source": str(own_photos), "optim.epochs": 1}, out=run)
    own_photos.rename(tmp_path / "elsewhere")
    assert main(["export", str(run), "--to", "safetensors", str(tmp_path / "out.safetensors")]) == 0
    told = capsys.readouterr().err
    assert f"data={own_photos}: no such file or folder; compared on mocokit's embedded sample instead" in told
