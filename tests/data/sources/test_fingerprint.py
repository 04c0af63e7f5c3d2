import shutil
from pathlib import Path

from mocokit.data.sources.fingerprint import fingerprint
from mocokit.data.sources.open_source import open_source
from mocokit.run.demo import sample_path


def test_the_same_files_have_the_same_fingerprint_and_a_missing_file_changes_it(own_photos: Path) -> None:
    first = fingerprint(open_source(own_photos))
    assert fingerprint(open_source(own_photos)) == first
    source = open_source(own_photos)
    Path(source.name(9)).unlink()
    assert fingerprint(source) != first, "gone since it was listed"
    assert fingerprint(open_source(own_photos)) != first


def test_other_labels_are_other_data(own_photos: Path) -> None:
    names = [open_source(own_photos).name(index) for index in range(3)]
    for label in ("b", "c"):
        (own_photos / f"{label}.csv").write_text("".join(f"{name},{label}\n" for name in names[:2]) + f"{names[2]},a\n")
    one, other = (fingerprint(open_source(own_photos / f"{label}.csv")) for label in ("b", "c"))
    assert one != other


def test_the_fingerprint_of_an_archive_depends_on_its_images(tmp_path: Path) -> None:
    prints = []
    for part in ("val", "test", "val"):
        path = tmp_path / "data.zip"
        shutil.copy(sample_path(part), path)
        prints.append(fingerprint(open_source(path)))
    assert prints[0] == prints[2] != prints[1]
