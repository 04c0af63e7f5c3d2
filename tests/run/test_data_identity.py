"""A run belongs to its images: changed ones are told on resume, whatever changed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import mocokit
from mocokit.cli import main
from mocokit.config.schema import Config
from mocokit.data.sources.sources import ImageSource
from mocokit.engine.backbone_file import load_backbone
from mocokit.engine.checkpoint import list_checkpoints, load_checkpoint
from tests.conftest import TINY
from tests.run_process import finish, start

Tiny = Callable[..., Config]


@pytest.fixture(scope="module")
def half_done(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on `photos` with one of two epochs done, whose mean was measured."""
    run = tmp_path_factory.mktemp("half_done") / "run"
    settings = TINY | {"data.source": str(photos), "data.mean": (), "data.std": ()}
    mocokit.pretrain("moco-v2-small", settings=settings, out=run)
    list_checkpoints(run / "checkpoints")[-1].unlink()
    return run


@pytest.fixture
def begun(half_done: Path, photos: Path, own_photos: Path, tmp_path: Path) -> Path:
    """A copy of `half_done` whose images are those of `own_photos`."""
    run = Path(shutil.copytree(half_done, tmp_path / "run"))
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace(str(photos), str(own_photos)))
    return run


def _remove_one(photos: Path) -> None:
    (photos / "cat" / "003.jpg").unlink()


def _add_one(photos: Path) -> None:
    shutil.copy(photos / "cat" / "003.jpg", photos / "cat" / "0035.jpg")


def _exchange_one(photos: Path) -> None:
    Image.open(photos / "cat" / "003.jpg").rotate(90).save(photos / "cat" / "003.jpg")


def _exchange_two(photos: Path) -> None:
    (photos / "cat" / "003.jpg").rename(photos / "x.jpg")
    (photos / "cat" / "004.jpg").rename(photos / "cat" / "003.jpg")
    (photos / "x.jpg").rename(photos / "cat" / "004.jpg")


def _rename_a_class(photos: Path) -> None:
    (photos / "rocket").rename(photos / "tower")


def _replace_many(photos: Path) -> None:
    for path in sorted(photos.rglob("*.jpg"))[:20]:
        Image.open(path).rotate(180).save(path)


CHANGES: dict[Callable[[Path], None], str] = {
    _add_one: r"81 images now: 1 added \(cat/0035.jpg\)",
    _exchange_one: r"80 images now: 1 with other content \(cat/003.jpg\)",
    _exchange_two: r"80 images now: 2 with other content \(cat/003.jpg, cat/004.jpg\)",
    _rename_a_class: r"80 images now: 16 removed \(rocket/000.jpg, .*, \.\.\.\), 16 added \(tower/000.jpg",
    _replace_many: r"80 images now: 20 with other content \(brick/000.jpg, brick/001.jpg, brick/002.jpg, \.\.\.\)",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_the_images_is_refused_and_named(
    begun: Path, own_photos: Path, change: Callable[[Path], None]
) -> None:
    change(own_photos)
    with pytest.raises(ValueError, match=rf"data: the images changed since .*run was saved: {CHANGES[change]}"):
        mocokit.resume(begun)


def test_accepted_images_are_the_runs_from_then_on(begun: Path, own_photos: Path) -> None:
    _replace_many(own_photos)
    for _ in range(2):  # the first attempt has not forgotten what there was
        with pytest.raises(ValueError, match=CHANGES[_replace_many]):
            mocokit.resume(begun)
    assert mocokit.resume(begun, accept_changes=True).step == 10
    assert (
        "20 with other content (brick/000.jpg, brick/001.jpg, brick/002.jpg, ...); accepted"
        in (begun / "log.txt").read_text()
    )
    assert mocokit.resume(begun).step == 10


def test_another_number_of_steps_an_epoch_is_told_and_can_be_accepted(begun: Path, own_photos: Path) -> None:
    _remove_one(own_photos)
    with pytest.raises(ValueError, match=r"79 images now: 1 removed \(cat/003.jpg\)"):
        mocokit.resume(begun)
    result = mocokit.resume(begun, accept_changes=True)
    assert (result.step, result.total_steps) == (8, 8)
    log = (begun / "log.txt").read_text()
    assert "4 steps an epoch now, 5 when the run was saved; it goes on at step 5 of 8" in log


def test_the_flag_of_the_command_accepts_changed_images(
    begun: Path, own_photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _add_one(own_photos)
    assert main(["resume", str(begun)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "go on with --accept-changes" in error
    assert main(["resume", str(begun), "--accept-changes"]) == 0


def test_copied_images_at_the_place_of_the_old_ones_are_the_same(begun: Path, own_photos: Path, tmp_path: Path) -> None:
    shutil.copytree(own_photos, tmp_path / "copy", copy_function=shutil.copyfile)  # new times of modification
    shutil.rmtree(own_photos)
    (tmp_path / "copy").rename(own_photos)
    assert mocokit.resume(begun).step == 10


def test_the_normalisation_stays_that_of_the_beginning(begun: Path, own_photos: Path) -> None:
    before = load_backbone(begun).card
    for path in own_photos.rglob("*.jpg"):
        Image.open(path).point(lambda value: value // 2).save(path)
    mocokit.resume(begun, accept_changes=True)
    after = load_backbone(begun).card
    assert (after.mean, after.std) == (before.mean, before.std)
    assert after.data_identity != before.data_identity and after.data == "own_photos"


def test_a_checkpoint_without_an_identity_still_tells_another_number_of_images(begun: Path, own_photos: Path) -> None:
    (path,) = list_checkpoints(begun / "checkpoints")
    state = load_checkpoint(path)
    del state["data"]
    torch.save(state, path)
    (begun / "images.npz").unlink()
    shutil.copytree(begun, begun.with_name("older"))
    assert mocokit.resume(begun).step == 10
    _add_one(own_photos)
    with pytest.raises(ValueError, match="81 images now, 80 before"):
        mocokit.resume(begun.with_name("older"))


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_lost_list_of_names_leaves_counts(begun: Path, own_photos: Path, damage: bytes | None) -> None:
    if damage is None:
        (begun / "images.npz").unlink()
    else:
        (begun / "images.npz").write_bytes(damage)
    _exchange_one(own_photos)
    with pytest.raises(ValueError, match="80 images as before, but other names, contents or labels"):
        mocokit.resume(begun)


def test_a_bank_with_a_row_for_each_image_can_not_take_another_number(own_photos: Path, tmp_path: Path) -> None:
    settings = {name: value for name, value in TINY.items() if name not in ("method.queue_size", "method.temperature")}
    settings |= {"method.num_negatives": 20, "data.source": str(own_photos), "optim.epochs": 1}
    mocokit.pretrain("memory-bank", settings=settings, out=tmp_path / "run")
    _add_one(own_photos)
    with pytest.raises(ValueError, match=r"has shape \(80, 16\), these images need \(81, 16\)"):
        mocokit.resume(tmp_path / "run", accept_changes=True)


class Pictures(ImageSource):
    """Computed images of the user's own."""

    def __init__(self, other: int = -1) -> None:
        self.other = other

    def __len__(self) -> int:
        return 40

    def read(self, index: int) -> NDArray[np.uint8]:
        return np.random.default_rng(index + 1000 * (index == self.other)).integers(0, 255, (40, 40, 3), np.uint8)


def test_own_objects_are_compared_too(tiny: Tiny, tmp_path: Path) -> None:
    mocokit.pretrain(tiny(**{"optim.epochs": 1}), data=Pictures(), out=tmp_path / "run")
    assert mocokit.resume(tmp_path / "run", data=Pictures()).step == 2
    with pytest.raises(ValueError, match=r"40 images now: 1 with other content \(7\)"):
        mocokit.resume(tmp_path / "run", data=Pictures(other=7))


def test_the_monitor_tells_test_images_that_are_training_images_and_unreadable_ones(
    tiny: Tiny, own_photos: Path, tmp_path: Path
) -> None:
    test = Path(shutil.copytree(own_photos, tmp_path / "test"))
    for path in sorted((test / "cat").iterdir())[:12]:
        path.write_text("no image")
    settings = {"data.source": str(own_photos), "data.test": str(test), "run.knn_every": 1, "run.knn_max_images": 400}
    result = mocokit.pretrain(tiny(**settings), out=tmp_path / "run")
    assert result.step == 10 and 0 < result.metrics["knn_acc"] < 1
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "68 of 80 test images (85 %) are also training images" in log
    assert log.count("12 of 80 test images can't be read (12 of 16 of class cat)") == 1, "not again each epoch"


def test_a_run_folder_inside_its_own_images_is_no_image(tiny: Tiny, own_photos: Path) -> None:
    settings = {"data.source": str(own_photos), "optim.epochs": 1}
    mocokit.pretrain(tiny(**settings), out=own_photos / "cat" / "run")
    assert (own_photos / "cat" / "run" / "views.png").is_file()
    assert mocokit.resume(own_photos / "cat" / "run").step == 5


SCRIPT = """
import os, sys
os.environ["LOCAL_RANK"] = "0"  # as if each rank had a machine of its own
from mocokit import distributed
from mocokit.data.sources.open_source import open_source
from mocokit.run.data_identity import identify_images
with distributed.session("cpu"):
    print(identify_images(open_source(sys.argv[1 + distributed.rank()])).num_images)
"""


@pytest.mark.dist
@pytest.mark.slow
def test_machines_with_other_images_are_told_apart(own_photos: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(SCRIPT)
    program = (str(tmp_path / "look.py"),)
    code, said = finish(start([str(photos), str(own_photos)], ranks=2, program=program))
    assert code == 0, said
    _exchange_one(own_photos)
    code, said = finish(start([str(photos), str(own_photos)], ranks=2, program=program))
    assert code != 0 and "the machine of rank 1 has other images than that of rank 0" in said


def test_changed_test_images_are_told_but_do_not_stop_the_run(tiny: Tiny, own_photos: Path, tmp_path: Path) -> None:
    """Before: accuracies of two different sets stood in one column without a word."""
    test = Path(shutil.copytree(own_photos, tmp_path / "test"))
    settings = {"data.source": str(own_photos), "data.test": str(test), "run.knn_every": 1, "run.knn_max_images": 400}
    mocokit.pretrain(tiny(**settings), out=tmp_path / "run")
    list_checkpoints(tmp_path / "run" / "checkpoints")[-1].unlink()
    (test / "cat" / "003.jpg").unlink()
    mocokit.resume(tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "data.test: the test images changed since the last checkpoint (79 now)" in log


def test_the_test_part_of_a_split_that_repeats_training_images_is_told(
    tiny: Tiny, own_photos: Path, tmp_path: Path
) -> None:
    for part in ("train", "val"):
        shutil.copytree(own_photos, tmp_path / "d" / part)
    mocokit.pretrain(tiny(**{"data.source": str(tmp_path / "d"), "optim.epochs": 1}), out=tmp_path / "run")
    assert f"data.test={tmp_path / 'd/val'}: 80 of 80 test images" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"x = ["])
def test_a_damaged_record_of_the_machine_blocks_no_run(begun: Path, damage: bytes) -> None:
    (begun / "environment.toml").write_bytes(damage)
    mocokit.resume(begun)
    assert (begun / "environment.toml.damaged").read_bytes() == damage
    assert "[[resumed]]" in (begun / "environment.toml").read_text()


def test_damaged_derived_numbers_are_named(begun: Path) -> None:
    (begun / "resolved.toml").write_text("mean = [")
    with pytest.raises(ValueError, match=rf"^run={begun}: its resolved.toml is damaged .* put it back, or delete it"):
        mocokit.resume(begun)
