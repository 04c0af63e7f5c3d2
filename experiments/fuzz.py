"""Feed damaged and forged files to every reader of files; any outcome except a result or a clear error is a finding.

    python experiments/fuzz.py --inputs 1000000

Inputs are real files of each kind. Bytes are changed, removed, repeated, set to extreme values or replaced by bytes of
another file. Checksums are made valid again if a reader would refuse the file because of them. Allowed outcomes: the
file is read, ValueError, OSError. The result file has the number of inputs, the time and the memory; an interrupted run
continues from it with new inputs.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from fuzz_images import deep_images, mend_png, photographs, tiffs
from PIL import __version__ as pillow_version
from safetensors.torch import save

from mocokit.config.presets import get_preset
from mocokit.config.toml import from_toml, to_toml
from mocokit.data.decode.decode import decode
from mocokit.data.decode.deep import GIVEN
from mocokit.data.decode.jpeg import decode_jpeg, read_jpeg_header
from mocokit.data.sources.identity import DataIdentity, describe_change, load_identity
from mocokit.data.sources.open_source import open_source
from mocokit.data.sources.plain_pickle import load_plain_pickle
from mocokit.data.sources.shard_index import ShardIndex, load_index
from mocokit.data.sources.sources import FileSource
from mocokit.data.value_range import measure_ranges
from mocokit.detection.data_sets import read_voc_annotation
from mocokit.engine.backbone_file import load_backbone
from mocokit.engine.checkpoint import load_checkpoint
from mocokit.foreign.evidence import Hints
from mocokit.foreign.find_backbone import find_backbone
from mocokit.foreign.reading import read_checkpoint

RESULT = Path(__file__).parent / "results" / "fuzz.json"
LISTED = ("a.jpg", "b c.jpg")
"""Images that the valid lists name."""
LIMIT_S = 20
"""Seconds after which an input counts as a hang; generous, because the machine may be busy."""
MAX_PX = 10**6
EXTREMES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0" * 8)

ANNOTATION = (
    b"<annotation><size><width>50</width><height>40</height></size><object><name>cat</name><difficult>1</difficult>"
    b"<bndbox><xmin>5</xmin><ymin>5.5</ymin><xmax>30</xmax><ymax>30</ymax></bndbox></object></annotation>"
)
IDENTITY = DataIdentity(
    names=("a/1.jpg", "b/2.jpg", "b/3.jpg"),
    sizes=np.array([10, 20, -1], np.int64),
    contents=np.array([2**63, 7, 0], np.uint64),
    labels=np.array([0, 1, 1], np.int64),
    class_names=("a", "b"),
)

Edit = tuple[int, int, int]
"""(kind, position, value) of an edit; any numbers are valid for any file."""


@dataclass(frozen=True)
class Reader:
    """A reader of one kind of file, with valid files to start from."""

    suffix: str
    seeds: tuple[bytes, ...]
    """Valid files."""
    read: Callable[[Path], object]
    mend: Callable[[bytes], bytes] = bytes
    """Make checksums valid again, or put the damaged part back into its container."""


def mutate(seeds: tuple[bytes, ...], choice: int, edits: list[Edit]) -> bytes:
    """Return a seed with the edits applied."""
    raw = bytearray(seeds[choice % len(seeds)])
    for kind, where, what in edits:
        at = where % (len(raw) + 1)
        match kind % 6:
            case 0:
                raw[at : at + 1] = bytes([what % 256])
            case 1:
                extreme = EXTREMES[what % len(EXTREMES)]
                raw[at : at + len(extreme)] = extreme
            case 2:
                del raw[at : at + what % 64]
            case 3:
                raw[at:at] = raw[at : at + what % 64] * (1 + what % 3)
            case 4:
                del raw[at if what % 8 == 0 else len(raw) - what % 16 :]
            case 5:
                other = seeds[what % len(seeds)]
                raw[at : at + 64] = other[at % max(1, len(other)) :][:64]
    return bytes(raw)


def _read_images(path: Path) -> None:
    source = open_source(path)
    for index in range(min(3, len(source))):
        with contextlib.suppress(OSError):  # raised for a bad image
            source.name(index), source.read(index)


def _decode(path: Path) -> None:
    raw = path.read_bytes()
    header = read_jpeg_header(raw)
    if header is not None and header.height * header.width <= MAX_PX:
        with contextlib.suppress(ValueError):
            decode_jpeg(raw, header, fraction=2)
    decode(raw, max_image_px=MAX_PX, ranges={GIVEN: (-3.0, 3000.0)})


def _measure(path: Path) -> None:
    files = FileSource(path.parent, (path.name,), None, ())
    ranges = measure_ranges(files, max_image_px=MAX_PX, seed=0, known={}).ranges
    decode(path.read_bytes(), max_image_px=MAX_PX, ranges=ranges)


def _mend_tar(raw: bytes) -> bytes:
    """Return the file with valid checksums in every block that could be a header."""
    blocks = bytearray(raw)
    for start in range(0, len(blocks) - 511, 512):
        if blocks[start + 257 : start + 262] == b"ustar":
            blocks[start + 148 : start + 156] = b" " * 8
            blocks[start + 148 : start + 156] = b"%06o\0 " % sum(blocks[start : start + 512])
    return bytes(blocks)


def _in_zip(valid: bytes, part: str) -> Callable[[bytes], bytes]:
    """Return a function that puts a damaged `part` back into the archive `valid`."""

    def wrap(raw: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(valid)) as old, zipfile.ZipFile(out, "w") as new:
            for name in old.namelist():
                new.writestr(name, raw if name == part else old.read(name))
        return out.getvalue()

    return wrap


def _part(archive: bytes, part: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return file.read(part)


def _archives(images: tuple[bytes, ...]) -> tuple[bytes, bytes, bytes]:
    """Return (stored zip, deflated zip, tar) with a few small files in class folders."""
    stored = io.BytesIO()
    packed = io.BytesIO()
    tar = io.BytesIO()
    with (
        zipfile.ZipFile(stored, "w") as a,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as b,
        tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as t,
    ):
        for name, raw in zip(("cat/1.jpg", f"dog/{'long' * 30}.jpg", "dog/\u00fc.png"), images, strict=False):
            a.writestr(name, raw)
            b.writestr(name, raw)
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            t.addfile(member, io.BytesIO(raw))
    return stored.getvalue(), packed.getvalue(), tar.getvalue()


def _tar(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, raw in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type = tarfile.LNKTYPE if target in members else tarfile.SYMTYPE
            member.linkname = target
            archive.addfile(member)
    return file.getvalue()


def _special_tars(image: bytes) -> dict[str, bytes]:
    """Return a tar file with links, one of tar files, a WebDataset shard, and CIFAR in two versions, all very small."""
    files = {"cat/1.jpg": image, "dog/2.jpg": image[:99]}
    links = {"cat/3.jpg": "cat/1.jpg", "dog/4.jpg": "../cat/3.jpg", "dog/5.jpg": "/etc/passwd"}
    row = bytes(range(256)) * 12
    batch = {"data": np.frombuffer(row * 2, np.uint8).reshape(2, 3072), "labels": [0, 1], "filenames": ["a", "b"]}
    names = pickle.dumps({"label_names": ["cat", "dog"]}, protocol=2)
    return {
        "links": _tar(files, links),
        "inner": _tar({"n01.tar": _tar(files, links), "n02.tar": _tar({"5.jpg": image})}),
        "shard": _tar({"v.01.jpg": image, "v.02.jpg": image, "v.01.cls": b"3", "v.02.json": b'{"label": 7}'}),
        "json": _tar({"1.jpg": image, "1.json": b'{"label": 7, "size": [4, 5]}'}),
        "pickles": _tar(
            {"cifar-10-batches-py/data_batch_1": pickle.dumps(batch, 2), "cifar-10-batches-py/meta": names}
        ),
        "binary": _tar({"cifar-100-binary/train.bin": b"\1\2" + row, "cifar-100-binary/test.bin": b"\1\2" + row}),
    }


def _pickles() -> tuple[bytes, ...]:
    batch = {"data": np.arange(12, dtype=np.uint8).reshape(2, 6), b"labels": [0, 300], "names": ["a", b"b", None, 1.5]}
    return tuple(pickle.dumps(batch, protocol=protocol) for protocol in (2, 4, 5))


def _index() -> bytes:
    file = io.BytesIO()
    members = np.array([[0, 0], [512, 1536], [300, 400], [123, -1]], np.int64)
    ShardIndex(("cat/1.jpg", "dog/2.jpg"), members, (0, 1), ("cat", "dog"), (4096,)).save(file)
    return file.getvalue()


def _pickle_name(archive: bytes) -> str:
    return next(name for name in zipfile.ZipFile(io.BytesIO(archive)).namelist() if name.endswith("data.pkl"))


def _identity_file() -> bytes:
    file = io.BytesIO()
    IDENTITY.save(file)
    return file.getvalue()


def _checkpoint() -> bytes:
    file = io.BytesIO()
    torch.save({"step": 3, "method": {"w": torch.arange(6.0).view(2, 3)}, "names": ["a", 1.5, None, True]}, file)
    return file.getvalue()


def _foreign() -> tuple[bytes, bytes]:
    """Return a small ViT with records of classes as torch writes it today, and as it did before 1.6."""
    size: dict[str, Any] = {"embed_dim": 8, "depth": 1, "num_heads": 2, "img_size": 32, "num_classes": 0}
    state = timm.create_model("vit_tiny_patch16_224", **size).state_dict()
    content = {
        "state_dict": {f"module.backbone.{name}": value for name, value in state.items()},
        "args": argparse.Namespace(num_heads=2, lr=[0.1, 0.2], function=getattr),
        "seen": {np.float64(3), (1, 2)},
    }
    files = (io.BytesIO(), io.BytesIO())
    torch.save(content, files[0])
    torch.save(content, files[1], _use_new_zipfile_serialization=False)
    return files[0].getvalue(), files[1].getvalue()


def _backbone() -> bytes:
    card = {
        "arch": "resnet10_w16",
        "stem": "small",
        "image_size": 32,
        "eval_crop_ratio": 1.0,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "step": 1,
        "value_ranges": {"uint16": [3.0, 4000.0]},
    }
    return save({"conv1.weight": torch.zeros(2, 3)}, {"mocokit": json.dumps(card)})


def build_readers() -> dict[str, Reader]:
    """Return every reader by name."""
    images = photographs()
    stored, packed, tar = _archives(images)
    idx = struct.pack(">4B3I", 0, 0, 8, 3, 4, 3, 2) + bytes(range(24))
    index = _index()
    identity = _identity_file()
    checkpoint = _checkpoint()
    pickled = _pickle_name(checkpoint)
    lists = (b"a.jpg 1\nb c.jpg 3\n# no\n", b'path,label\na.jpg,cat\n"b,c.jpg",dog\n', "\u00fc.png\t1\n".encode())
    odd_lists = tuple(text.decode().encode(code) for text in lists for code in ("utf-8-sig", "utf-16", "utf-16-be"))
    wide = (b"id;file;label\n1;a.jpg;x\n2;b c.jpg;y\n", b"image,MEL,NV\na.jpg,1,0\n", b"a.jpg,3,x\nb c.jpg,4,y\n")
    tars = _special_tars(images[0])
    config = tuple(to_toml(get_preset(name)).encode() for name in ("moco-v1", "moco-v2-small"))
    foreign = _foreign()
    foreign_pickle = _pickle_name(foreign[0])
    return {
        "image": Reader(".img", images, _decode),
        "TIFF": Reader(".tif", tiffs(), _decode),
        "TIFF, value range": Reader(".tif", tiffs(), _measure),
        "16 bits": Reader(".png", deep_images(), _measure, mend_png),
        "zip": Reader(".zip", (stored, packed), _read_images),
        "tar": Reader(".tar", (tar,), _read_images),
        "tar, checksums right": Reader(".tar", (tar,), _read_images, _mend_tar),
        "IDX": Reader("-images-idx3-ubyte", (idx,), _read_images),
        "IDX in gzip": Reader("-images-idx3-ubyte.gz", (idx,), _read_images, lambda raw: gzip.compress(raw, 1)),
        "gzip of IDX": Reader("-images-idx3-ubyte.gz", (gzip.compress(idx),), _read_images),
        "list .txt": Reader(".txt", lists, _read_images),
        "list .csv": Reader(".csv", lists[1:], _read_images),
        "list of odd encodings": Reader(".txt", odd_lists, _read_images),
        "table of odd columns": Reader(".csv", (*wide, *odd_lists), _read_images),
        "tar with links": Reader(".tar", (tars["links"], tars["inner"]), _read_images, _mend_tar),
        "tar of tars": Reader(".tar", (tars["inner"],), _read_images, _mend_tar),
        "WebDataset shard": Reader(".tar", (tars["shard"], tars["json"]), _read_images, _mend_tar),
        "CIFAR": Reader(".tar.gz", (tars["pickles"], tars["binary"]), _read_images, _gzip_of_tar),
        "plain pickle": Reader(".pkl", _pickles(), lambda path: load_plain_pickle(path.read_bytes())),
        "shard index": Reader(".npz", (index,), _load_index),
        "shard index, names": Reader(".npz", (_part(index, "names.npy"),), _load_index, _in_zip(index, "names.npy")),
        "shard index, members": Reader(
            ".npz", (_part(index, "members.npy"),), _load_index, _in_zip(index, "members.npy")
        ),
        "images of a run": Reader(".npz", (identity,), _load_identity),
        "images of a run, labels": Reader(
            ".npz", (_part(identity, "labels.npy"),), _load_identity, _in_zip(identity, "labels.npy")
        ),
        "VOC annotation": Reader(".xml", (ANNOTATION,), read_voc_annotation),
        "checkpoint": Reader(".pt", (checkpoint,), load_checkpoint),
        "checkpoint, pickle": Reader(
            ".pt", (_part(checkpoint, pickled),), load_checkpoint, _in_zip(checkpoint, pickled)
        ),
        "foreign checkpoint": Reader(".pth", foreign, _find_backbone),
        "foreign checkpoint, pickle": Reader(
            ".pth", (_part(foreign[0], foreign_pickle),), _find_backbone, _in_zip(foreign[0], foreign_pickle)
        ),
        "foreign safetensors": Reader(".safetensors", (_backbone(),), read_checkpoint),
        "backbone": Reader(".safetensors", (_backbone(),), load_backbone),
        "config": Reader(".toml", config, lambda path: from_toml(path.read_text(encoding="utf-8"))),
    }


def _gzip_of_tar(raw: bytes) -> bytes:
    return gzip.compress(_mend_tar(raw), 1)


def _find_backbone(path: Path) -> None:
    find_backbone(path, Hints(heads=2))


def _load_index(path: Path) -> ShardIndex:
    return load_index(path.read_bytes(), path.name)


def _load_identity(path: Path) -> None:
    """Load an identity and tell how it differs, as `resume` does."""
    loaded = load_identity(path.read_bytes(), like=IDENTITY)
    if loaded is not None:
        describe_change(loaded, IDENTITY)


def try_input(reader: Reader, raw: bytes, folder: Path) -> str:
    """Read one input; return "read" or "refused".

    Raises:
        Exception: Any other error of the reader, which is a finding.

    """
    path = folder / f"input{reader.suffix}"
    path.write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reader.read(path)
        except (ValueError, OSError):
            return "refused"
    return "read"


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def late(_number: int, _frame: object) -> None:
        raise AssertionError(f"more than {LIMIT_S} s")  # a type that no reader catches

    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _draw(rng: random.Random) -> tuple[int, list[Edit]]:
    count = rng.choice((1, 1, 2, 3, 8))
    return rng.randrange(100), [(rng.randrange(6), rng.randrange(2**20), rng.randrange(2**16)) for _ in range(count)]


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _fuzz(name: str, reader: Reader, row: dict[str, float], findings: list[dict[str, str]], seconds: float) -> None:
    """Fuzz one reader for `seconds`; add the counts to `row`."""
    folder_root = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=folder_root) as text:
        folder = Path(text)
        start = time.perf_counter()
        for listed in LISTED:
            (folder / listed).touch()
        while (elapsed := time.perf_counter() - start) < seconds:
            number = int(row["inputs"])
            raw = reader.mend(mutate(reader.seeds, *_draw(random.Random(f"{name} {number}"))))
            before = time.perf_counter()
            try:
                with _time_limit():
                    outcome = try_input(reader, raw, folder)
            except Exception as error:  # noqa: BLE001, any other error is a finding
                outcome = "findings"
                findings.append(
                    {"reader": name, "number": str(number), "error": repr(error)[:300], "raw": raw.hex()[:4000]}
                )
            row[outcome] += 1
            row["inputs"] += 1
            row["slowest_s"] = round(max(row["slowest_s"], time.perf_counter() - before), 3)
        row["seconds"] = round(row["seconds"] + elapsed, 1)


def _note(memory: list[dict[str, float]], sample: dict[str, float]) -> None:
    """Append `sample`; replace the last sample if it has less than 2 % more inputs than the one before it."""
    if len(memory) > 1 and memory[-1]["inputs"] < 1.02 * memory[-2]["inputs"]:
        memory.pop()
    memory.append(sample)


def main() -> None:
    """Fuzz all readers in turn until there are enough inputs; save after each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="total, including the inputs of the result file")
    parser.add_argument("--minutes", type=float, default=10**6, help="stop after this time")
    parser.add_argument("--readers", nargs="+", help="readers to fuzz; default: all")
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # hides the messages of libtiff about damaged files
    readers = build_readers()
    end = time.monotonic() + 60 * args.minutes
    result = (
        json.loads(args.result.read_text()) if args.result.exists() else {"readers": {}, "findings": [], "memory": []}
    )
    rows = result["readers"]
    for name in readers:
        rows.setdefault(name, dict.fromkeys(("inputs", "read", "refused", "findings", "seconds", "slowest_s"), 0))
    while (total := sum(row["inputs"] for row in rows.values())) < args.inputs and time.monotonic() < end:
        for name in args.readers or readers:
            _fuzz(name, readers[name], rows[name], result["findings"], seconds=2.0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sample = {"inputs": total, "resident_mb": round(_resident_mb(), 1), "peak_mb": round(peak, 1)}
        _note(result["memory"], sample)
        result["inputs"] = int(sum(row["inputs"] for row in rows.values()))
        result["versions"] = {"torch": str(torch.__version__), "numpy": np.__version__, "Pillow": pillow_version}
        args.result.parent.mkdir(exist_ok=True)
        args.result.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{result['inputs']:,} inputs, {len(result['findings'])} findings, {result['memory'][-1]}", flush=True)


if __name__ == "__main__":
    main()
