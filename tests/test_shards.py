from __future__ import annotations

import functools
import gzip
import http.server
import json
import threading

import pytest

from e4t.config import PretrainConfig
from e4t.data import Ahead, ImageData
from e4t.errors import DataError, ImageError
from e4t.images import decode_image
from e4t.shards import ShardStream, bare, shard_urls, source_name
from packed import png, write_shards, write_tar

pytest.importorskip("webdataset")
PLAIN = PretrainConfig(shuffle_buffer=1)


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "shards", (3, 4, 2))


def names(stream, positions):
    return [stream.at(position).name.rpartition(":")[2] for position in positions]


def stream_of(paths, **options):
    return ShardStream([str(path) for path in paths], **{"seed": 0, "buffer": 3, **options})


def test_no_shell_reads_a_url(tmp_path, monkeypatch):
    """What the lower bound in pyproject.toml is for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("e4t.shards._PAUSES", ())
    url = "https://127.0.0.1:1/a.tar';touch ran;'"
    assert list(stream_of([url]).samples(url)) == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_a_set_of_shards(shards, image_folder):
    found = [str(path) for path in shards]
    folder = shards[0].parent
    assert shard_urls(folder) == shard_urls(f"{folder}/{{000..002}}.tar") == shard_urls(f"{folder}/*.tar") == found
    assert shard_urls(f"{found[0]}::{found[2]}") == [found[0], found[2]]
    assert shard_urls("https://x/{0..1}.tar") == ["https://x/0.tar", "https://x/1.tar"]
    assert shard_urls(image_folder) == shard_urls(shards[0]) == []
    with pytest.raises(DataError, match="no shard is called"):
        shard_urls(f"{folder}/*.tgz")


def test_what_is_there_under_a_name_is_no_pattern(shards, image_folder):
    for name in ("photos{x}", "p*q", "a::b"):
        folder = image_folder.with_name(name)
        image_folder.rename(folder)
        assert shard_urls(folder) == []
        assert len(ImageData(folder, PLAIN, 8)) == 5
        folder.rename(image_folder)
    odd = shards[0].rename(shards[0].with_name("p{0..1}*.tar"))
    assert shard_urls(f"{odd}::{shards[1]}") == [str(odd), str(shards[1])]
    write_tar(image_folder / "backup.tar", {"0.png": png(0)})
    with pytest.raises(DataError, match=r"images' holds both pictures and .tar files; .*'.*images/\*.tar'"):
        ImageData(image_folder, PLAIN, 8)
    assert shard_urls(f"{image_folder}/*.tar") == [str(image_folder / "backup.tar")]


def test_names_of_shards_are_never_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "pipe:touch pwned #.tar", {"a.png": png(0)})
    for source in (".", "*.tar", tmp_path):
        assert names(ShardStream(shard_urls(source), 0, 1), [0]) == ["a"]
    for command in ("pipe:touch pwned", "{pipe:touch pwned;,x}.tar", "x::pipe:touch pwned"):
        stream = ShardStream(shard_urls(command) or [command], 0, 1)
        with pytest.raises(DataError, match="holds a sample"):
            stream.at(0)
    for url in ("s3://bucket/0.tar", "file:///0.tar", "htgs://x/{0..1}.tar"):
        with pytest.raises(DataError, match="cannot be fetched: shards come from files, https or http"):
            shard_urls(url)
    assert not (tmp_path / "pwned").exists()


def test_secrets_of_a_url_are_not_written_down(shards, monkeypatch):
    url = "https://host/{0..9}.tar?X-Amz-Signature=a/b"
    assert source_name(url) == "{0..9}.tar"
    assert source_name(f"{url}::https://me:secret@host/x.tar?key=1") == "x.tar"
    assert source_name("photos/what?") == "what?"
    assert bare("https://me:secret@host/x.tar?key=1") == "https://host/x.tar"
    monkeypatch.setattr("e4t.shards._PAUSES", ())
    monkeypatch.setattr("e4t.shards._opened", lambda url: shards[int(url[-1])].open("rb"))
    renewed = [[f"https://host/{n}.tar?key={key}&n={n}" for n in range(3)] for key in "ab"]
    first = ShardStream(renewed[0], 0, 1)
    expected = names(first, range(12))
    assert first.sizes == {f"https://host/{n}.tar": [[0, size]] for n, size in enumerate((3, 4, 2))}
    assert names(ShardStream(renewed[1], 0, 1, sizes=first.sizes), [10, 11]) == expected[10:]
    alike = ShardStream([f"https://host/get?n={n}" for n in range(3)], 0, 1)
    assert sorted(names(alike, range(10))[:9]) == [f"{n:04d}" for n in range(9)]
    assert sorted(alike.sizes.values()) == [[[0, 2]], [[0, 3]], [[0, 4]]]

    def fail(url):
        raise OSError(f"no answer from {url}")

    monkeypatch.setattr("e4t.shards._opened", fail)
    assert list(first.samples(renewed[0][0])) == []
    assert first.broken == {
        "https://host/0.tar": "'https://host/0.tar' ends early, after 0 samples: no answer from https://host/0.tar"
    }
    assert first.unreachable == {"https://host/0.tar"}


def test_compressed_shards_are_refused_in_a_sentence(shards):
    shards[0].write_bytes(gzip.compress(shards[0].read_bytes()))
    stream = stream_of(shards[:1])
    with pytest.raises(DataError, match=r"it is no plain .tar file \(.*\); one that is compressed has to be unpacked"):
        stream.at(0)
    assert stream.unreachable == set()


def test_no_more_bytes_wait_than_there_may(shards, monkeypatch):
    whole = names(stream_of(shards, buffer=100), range(9))
    monkeypatch.setattr("e4t.shards._MOST_WAITING", 3 * len(png(0)))
    shuffled = [names(stream_of(shards, buffer=100), range(9)) for _ in range(2)]
    assert shuffled[0] == shuffled[1] != whole
    assert sorted(shuffled[0]) == sorted(whole)
    monkeypatch.setattr("e4t.shards._MOST_WAITING", 0)  # nothing may wait: the order of the files
    inside = names(stream_of(shards[:1], buffer=100), range(3))
    assert inside == [f"{n:04d}" for n in range(3)]


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


def test_reading_goes_on_exactly_where_sizes_changed_between_epochs(shards):
    """A shard is away in epochs 0 and 1, back in 2 and 3, and shorter from 4 on."""
    away, stream, expected = shards[1].with_suffix(".away"), stream_of(shards), []

    def read(count, before, after):
        if before != after:
            before.rename(after)
        expected.extend(names(stream, range(len(expected), len(expected) + count)))

    read(10, shards[1], away)
    read(18, away, shards[1])
    write_tar(shards[1], {f"{n:04d}.png": png(n) for n in (3, 4)})
    read(14, shards[1], shards[1])
    assert stream.sizes[str(shards[1])] == [[0, 0], [2, 4], [4, 2]]
    known = json.loads(json.dumps(stream.sizes))  # as a state keeps them
    for position in (28, 30, 34, 35, 38, 41):  # earlier ones lie in epochs whose shards are not any more what they were
        assert names(stream_of(shards, sizes=dict(known)), range(position, 42)) == expected[position:]
    assert stream_of(shards, sizes=dict(known))._epoch_at(9) == (1, 5)
    assert stream_of(shards, sizes=dict(known))._epoch_at(27) == (3, 19)
    assert stream_of(shards, sizes=dict(known))._epoch_at(5_000_000) == (4 + 4_999_972 // 7, 28 + 4_999_972 // 7 * 7)


def test_a_shard_that_broke_off_ends_there_again_in_the_same_epoch_only(shards):
    whole = shards[0].read_bytes()
    shards[0].write_bytes(whole[:5000])
    stream = stream_of(shards)
    first = names(stream, range(7))
    known = dict(stream.sizes)
    shards[0].write_bytes(whole)
    again = stream_of(shards, sizes=known)
    assert names(again, range(3, 7)) == first[3:]
    epoch = sum(size for ((_, size),) in known.values())
    assert len(set(names(again, range(epoch, epoch + 9)))) == 9


def test_known_shards_are_left_out_unread(shards):
    sizes = {str(path): [[0, count]] for path, count in zip(shards, (3, 4, 2), strict=True)}
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
        far, near = ImageData(url, PLAIN, 8), ImageData(shards[0].parent, PLAIN, 8)
        assert (far.views(1, 3).target == near.views(1, 3).target).all()
        server.shutdown()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_broken_samples_and_shards_are_left_out_and_counted(tmp_path, shards):
    write_tar(shards[1], {"a.txt": b"no picture", "b.png": b"broken", "c.png": png(50)})
    shards[2].write_bytes(shards[2].read_bytes()[:700])  # in the middle of its first picture
    data = ImageData(tmp_path / "shards", PLAIN, 8)
    data.views(0, 12)
    assert {name.rpartition("/")[2] for name in data.broken} == {"001.tar:a", "001.tar:b", "002.tar"}
    assert data.broken[str(shards[2])].startswith(f"'{shards[2]}' ends early, after 0 samples: ")


def test_what_is_broken_does_not_depend_on_how_far_is_read_ahead(shards):
    write_tar(shards[1], {f"{n}.png": b"broken" if n % 2 else png(n) for n in range(6)})
    shards[2].write_bytes(shards[2].read_bytes()[:700])

    def broken_after(batches, depth):
        data = ImageData(shards[0].parent, PLAIN, 8)
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
    assert (large.num_bytes, small.num_bytes) == (len(b"large"), len(png(1)) + 10_000)
    assert small.image().tobytes() == decode_image(png(1), "").tobytes()
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
        assert [s.image().tobytes() for s in stream.samples(url)] == [
            decode_image(png(n), "").tobytes() for n in range(3)
        ]
        assert (stream.broken, stream.sizes) == ({}, {url: [[0, 3]]})
        server_fails[:] = [True] * 3
        assert len(list(stream.samples(url))) < 3
        assert "ends early, after" in stream.broken[url]
        server.shutdown()


def test_workers_show_the_same(shards):
    def run(workers, source, start=0):
        data = ImageData(source, PLAIN, 8)
        ahead = Ahead(lambda index, run: data.views_at(range(3 * index, 3 * index + 3), run), workers)
        shown = [ahead(index) for index in range(start, 6)]
        ahead.close()
        return shown

    for source in (shards[0].parent, shards[0]):
        plain = run(0, source)
        for other, begun in ((run(3, source), 0), (run(2, source, start=4), 4)):
            assert all((a.target == b.target).all() for a, b in zip(plain[begun:], other, strict=True))
            assert [list(a.captions) for a in plain[begun:]] == [list(b.captions) for b in other]
