from __future__ import annotations

import functools
import http.server
import threading

import pytest

from e4t.data import Ahead, ImageData
from e4t.errors import DataError, ImageError
from e4t.shards import ShardStream, shard_urls
from packed import png, write_shards, write_tar

pytest.importorskip("webdataset")
PLAIN = {"resolution": 8, "crop_scale": (0.8, 1.0), "flip": False, "color_jitter": 0.0, "seed": 0}


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "shards", (3, 4, 2))


def names(stream, positions):
    return [stream.at(position).name.rpartition(":")[2] for position in positions]


def stream_of(paths, **options):
    return ShardStream([str(path) for path in paths], **{"seed": 0, "buffer": 3, **options})


def test_what_is_a_set_of_shards(shards, image_folder):
    found = [str(path) for path in shards]
    folder = shards[0].parent
    assert shard_urls(folder) == shard_urls(f"{folder}/{{000..002}}.tar") == shard_urls(f"{folder}/*.tar") == found
    assert shard_urls(f"{found[0]}::{found[2]}") == [found[0], found[2]]
    assert shard_urls("https://x/{0..1}.tar") == ["https://x/0.tar", "https://x/1.tar"]
    assert shard_urls(image_folder) == shard_urls(shards[0]) == []
    with pytest.raises(DataError, match="no shard is called"):
        shard_urls(f"{folder}/*.tgz")


def test_epochs_are_whole_and_orders_differ(shards):
    stream = stream_of(shards)
    epochs = [names(stream, range(9 * n, 9 * n + 9)) for n in range(3)]
    assert all(sorted(epoch) == [f"{n:04d}" for n in range(9)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert names(stream_of(shards, seed=1), range(9)) != epochs[0]


@pytest.mark.parametrize("position", [0, 4, 9, 13, 26])
def test_reading_goes_on_anywhere_with_known_sizes_or_without(shards, position):
    straight = stream_of(shards)
    expected = names(straight, range(30))[position:]
    for sizes in ({}, dict(straight.sizes), dict(list(straight.sizes.items())[:2])):
        assert names(stream_of(shards, sizes=sizes), range(position, 30)) == expected


def test_known_shards_are_left_out_unread(shards):
    sizes = {str(path): count for path, count in zip(shards, (3, 4, 2), strict=True)}
    for path in shards:
        path.unlink()
    stream = stream_of(shards, sizes=sizes)
    with pytest.raises(DataError, match=r"none of the 3 shards holds a sample; '.*tar' ends early"):
        stream.at(20)
    assert len(stream.broken) == 3


def test_released_samples_are_read_anew(shards):
    stream = stream_of(shards)
    seen = names(stream, range(5))
    stream.release(4)
    assert stream.at(4)
    assert names(stream, range(5)) == seen


def test_streams_from_a_server(shards):
    handler = functools.partial(_Silent, directory=str(shards[0].parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/{{000..002}}.tar"
        far, near = ImageData(url, **PLAIN), ImageData(shards[0].parent, **PLAIN)
        assert (far.views(1, 3).target == near.views(1, 3).target).all()
        server.shutdown()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_broken_samples_and_shards_are_left_out_and_counted(tmp_path, shards):
    write_tar(shards[1], {"a.txt": b"no picture", "b.png": b"broken", "c.png": png(50)})
    shards[2].write_bytes(shards[2].read_bytes()[:700])  # in the middle of its first picture
    data = ImageData(tmp_path / "shards", **PLAIN)
    data.views(0, 12)
    assert {name.rpartition("/")[2] for name in data.broken} == {"001.tar:a", "001.tar:b", "002.tar"}
    assert data.broken[str(shards[2])].startswith(f"'{shards[2]}' ends early, after 0 samples: ")


def test_what_is_broken_does_not_depend_on_how_far_is_read_ahead(shards):
    write_tar(shards[1], {f"{n}.png": b"broken" if n % 2 else png(n) for n in range(6)})
    shards[2].write_bytes(shards[2].read_bytes()[:700])

    def broken_after(batches, depth):
        data = ImageData(shards[0].parent, **PLAIN)
        views = [data.views_at(range(2 * n, 2 * n + 2)) for n in range(batches + depth)]
        for number in range(batches):
            data.use(views[number], 2 * number + 2)
        return data.broken

    for batches in range(1, 6):
        assert broken_after(batches, 0) == broken_after(batches, 3)


def test_too_large_files_are_not_read(shards, monkeypatch):
    monkeypatch.setattr("e4t.pictures.MAX_BYTES", 2000)
    text = b"a face " * 5000
    write_tar(
        shards[0], {"a.png": bytes(3000), "a.txt": b"large", "b.png": png(1), "b.txt": text, "b.bin": bytes(9999)}
    )
    large, small = ShardStream([], 0, 1).samples(str(shards[0]))
    with pytest.raises(ImageError, match=r"000.tar:a' has 0 MB, and the limit is"):
        large.image()
    assert (large.picture, small.picture) == (None, png(1))
    assert small.text == text[:10_000]
    assert small.caption().startswith("a face a face")


def test_a_shard_that_breaks_off_on_its_way_is_fetched_again(shards, monkeypatch):
    whole, server_fails = shards[0].read_bytes(), [True, True]

    class Flaky(_Silent):
        def do_GET(self):
            broken = server_fails.pop() if server_fails else False
            self.send_response(200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole[:4000] if broken else whole)

    monkeypatch.setattr("e4t.shards._PAUSES", (0.0, 0.0))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/000.tar"
        stream = ShardStream([url], 0, 1)
        assert [s.picture for s in stream.samples(url)] == [png(n) for n in range(3)]
        assert (stream.broken, stream.sizes) == ({}, {url: 3})
        server_fails[:] = [True] * 3
        assert len(list(stream.samples(url))) < 3
        assert "ends early, after" in stream.broken[url]
        server.shutdown()


def test_workers_show_the_same(shards):
    def run(workers, source, start=0):
        data = ImageData(source, **PLAIN)
        ahead = Ahead(lambda index, run: data.views_at(range(3 * index, 3 * index + 3), run), workers)
        shown = [ahead(index) for index in range(start, 6)]
        ahead.close()
        return shown

    for source in (shards[0].parent, shards[0]):
        plain = run(0, source)
        for other, begun in ((run(3, source), 0), (run(2, source, start=4), 4)):
            assert all((a.target == b.target).all() for a, b in zip(plain[begun:], other, strict=True))
            assert [list(a.captions) for a in plain[begun:]] == [list(b.captions) for b in other]
