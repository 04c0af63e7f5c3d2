"""Read shards from a web server."""

import http.server
import re
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from mocokit.data.packing.pack import pack
from mocokit.data.sources import shards as shards_module
from mocokit.data.sources.open_source import open_source
from mocokit.data.sources.sources import ImageSource
from tests.data.reading import Reads


@pytest.fixture(scope="module")
def packed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos` in several shards."""
    folder = tmp_path_factory.mktemp("packed")
    pack(photos, folder, max_image_px=10**6, shard_bytes=40_000)
    return folder


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "WAITS_S", (0.0, 0.0))


def _images(source: ImageSource) -> list[object]:
    return [source.read(index) for index in range(len(source))]


class _Server(http.server.SimpleHTTPRequestHandler):
    """A file server with byte ranges; `server.options` switches these off and sets the number of failing requests."""

    def do_GET(self) -> None:
        options = self.server.options  # type: ignore[attr-defined]
        path = Path(self.translate_path(self.path))
        if options["failures"]:
            options["failures"] -= 1
            self.send_error(options["status"])
        elif not path.is_file():
            self.send_error(options["absent"])
        else:
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if options["ranges"] else None
            raw = path.read_bytes()
            part = raw[int(span[1]) : int(span[2]) + 1] if span else raw
            options["sent"] += len(part)
            self.send_response(206 if span else 200)
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

    def log_message(self, *_arguments: object) -> None:
        """Log nothing."""


@pytest.fixture
def server(packed: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the url of a server of `packed`, and its options."""
    pytest.importorskip("aiohttp")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Server, directory=str(packed))) as http_server:
        options = {"ranges": True, "failures": 0, "status": 503, "absent": 404, "sent": 0}
        http_server.options = options  # type: ignore[attr-defined]
        thread = threading.Thread(target=http_server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_port}", options
        http_server.shutdown()
        thread.join()


Server = tuple[str, dict[str, Any]]


def test_a_web_server_gives_the_same_images_by_parts_of_files(server: Server, packed: Path) -> None:
    url, options = server
    last = len(list(packed.glob("*.tar"))) - 1
    source = open_source(f"{url}/shard-{{00000..{last:05d}}}.tar")
    assert options["sent"] == (packed / "shard-index.npz").stat().st_size, "opening reads the index alone"
    assert _images(source) == _images(open_source(packed))
    assert source.labels == open_source(packed).labels
    assert options["sent"] < sum(path.stat().st_size for path in packed.iterdir())


def test_forked_workers_read_from_a_web_server_used_before(server: Server, packed: Path) -> None:
    source = open_source(server[0])
    assert list(DataLoader(Reads(source), batch_size=None, num_workers=2)) == _images(open_source(packed))


def test_a_request_that_fails_twice_is_repeated(server: Server, packed: Path) -> None:
    url, options = server
    source = open_source(url)
    expected = open_source(packed).read(5)
    options["failures"] = 2
    assert source.read(5) == expected
    options["failures"] = 3
    with pytest.raises(OSError, match="503"):
        source.read(5)


def test_a_denied_request_is_not_repeated(server: Server) -> None:
    url, options = server
    source = open_source(url)
    options.update(failures=9, status=403)
    with pytest.raises(PermissionError, match=r"shard-00000.tar"):
        source.read(0)
    assert options["failures"] == 8


def test_a_server_that_denies_missing_files_counts_as_one_without_index(server: Server) -> None:
    url, options = server
    options["absent"] = 403
    with pytest.raises(ValueError, match=r"has no shard-index.npz of `mocokit pack`"):
        open_source(f"{url}/nowhere")


def test_a_server_that_sends_whole_files_only_is_an_error(server: Server) -> None:
    url, options = server
    source = open_source(url)
    options["ranges"] = False
    with pytest.raises(ValueError, match="can't send a part of a file; copy the shards to this machine"):
        source.read(0)
