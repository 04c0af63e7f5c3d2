import json
import logging
from pathlib import Path

import pytest

from mocokit.evaluate import baselines
from mocokit.evaluate.builtin_protocols import find_protocol
from mocokit.evaluate.evaluation import ALL, evaluate
from mocokit.evaluate.knn import PROTOCOLS
from mocokit.evaluate.rank_shares import extract_share
from mocokit.evaluate.report_knn import compare_with_baselines


def test_one_table_holds_every_protocol_that_has_enough_labels(
    run: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    protocols = ["knn", "linear/fast", "linear/moco", "finetune/lr-grid@1%", "finetune/simclr@50%"]
    with caplog.at_level(logging.WARNING, logger="mocokit"):
        rows = evaluate(run, data=photos, protocols=protocols, epochs_scale=0.02, num_workers=0, device_name="cpu")
    assert "finetune/lr-grid@1%: skipped" in caplog.text
    found = {row.protocol: {other.features for other in rows if other.protocol == row.protocol} for row in rows}
    networks = {"random init", "pre-trained"}
    assert found == {
        "knn/k=20/T=0.07": {"raw pixels", *networks},
        "knn/k=200/T=0.1": {"raw pixels", *networks},
        "linear/fast@standardised,b8,e1": {"raw pixels", *networks},
        "linear/moco@b8,e2": networks,
        "linear/moco@b8,e2,best-on-test": networks,
        "finetune/simclr@50%,b4,e1": networks,
    }
    assert {row.train_images for row in rows if row.protocol.startswith("finetune")} == {36}
    assert {row.test_images for row in rows} == {8}
    written = json.loads((run / "evaluation.json").read_text())
    assert [line["accuracy"] for line in written] == [row.accuracy for row in rows]
    assert "| linear/moco@b8,e2 | 72 | - |" in (run / "evaluation.md").read_text()


def test_features_are_extracted_once(run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def count(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return extract_share(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(baselines, "extract_share", count)
    for protocols in (["knn", "linear/fast"], ["linear/fast"]):
        rows = evaluate(
            run, data=photos, protocols=protocols, baselines=False, epochs_scale=0.1, num_workers=0, device_name="cpu"
        )
    assert len(calls) == 2, "train and test, once each, over two evaluations"
    assert all(row.minutes > 0 for row in rows), "what the features cost is counted, though they were there"
    kept = json.loads((run / "evaluation.json").read_text())
    assert [line["protocol"].split("@")[0] for line in kept] == [*(f"knn/{p}" for p in PROTOCOLS), "linear/fast"]


def test_evaluate_and_the_knn_command_give_the_same_knn_accuracy(run: Path, photos: Path) -> None:
    rows = evaluate(run, data=photos, protocols=["knn"], num_workers=0, device_name="cpu")
    table = compare_with_baselines(run, bank=photos, num_workers=0, device_name="cpu")
    want = {(line.features, f"knn/{p}"): accuracy for line in table for p, accuracy in line.accuracy.items()}
    assert {(row.features, row.protocol): row.accuracy for row in rows} == want


def test_an_id_list_trains_on_those_images(run: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("\n".join(str(number) for number in range(0, 80, 2)))
    (row,) = evaluate(
        run,
        data=photos,
        test=photos,
        protocols=[f"finetune/simclr@{tmp_path / 'ids.txt'}"],
        baselines=False,
        epochs_scale=0.02,
        num_workers=0,
        device_name="cpu",
    )
    assert (row.train_images, row.test_images) == (40, 80)
    assert row.protocol == "finetune/simclr@ids.txt,b4,e1"


def test_a_backbone_file_can_be_evaluated_and_its_results_are_beside_it(run: Path, photos: Path) -> None:
    file = (run / "backbone.safetensors").rename(run.parent / "mine.safetensors")
    evaluate(file, data=photos, protocols=["knn"], baselines=False, num_workers=0, device_name="cpu")
    assert (run.parent / "mine_evaluation" / "evaluation.json").is_file()


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (
            "lineal/moco",
            r"protocols='lineal/moco': unknown; did you mean linear/moco\? choose one of \['knn', 'linear/fast'",
        ),
        ("linear/mocco", r"protocols='linear/mocco': unknown; did you mean linear/moco\?"),
        ("linear/moco@1%", "protocols=linear/moco@1%: trains on all labels; give linear/moco"),
        ("finetune/lr-grid", "for example finetune/lr-grid@1%"),
        ("finetune/lr-grid@x%", "not a share of the labels"),
        ("finetune/lr-grid@0%", "fraction=0.0: must be above 0"),
        ("finetune/simclr@/nowhere.txt", "ids=/nowhere.txt: can't be read"),
    ],
)
def test_a_wrong_protocol_is_an_error_that_names_the_remedy(
    run: Path, photos: Path, protocol: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(run, data=photos, protocols=["knn", protocol], baselines=False, num_workers=0, device_name="cpu")
    assert protocol not in ALL and [find_protocol(known).id for known in ALL] == list(ALL)
