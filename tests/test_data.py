"""The loaders: shapes, ranges, splits, identity of the copy, and the one sentence when files are missing."""

import gzip
import io
import struct
import tarfile
import urllib.error
import urllib.request

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from methods.core.data import TrainingSet
from methods.data import LOADERS, Images, MissingData, Mixture, cifar10, files, load, mnist


@pytest.fixture
def empty_place(tmp_path, monkeypatch):
    """A machine without data and without a network."""

    def refuse(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATLAS_DATA", str(tmp_path / "atlas"))
    monkeypatch.setattr(files, "CHECKOUT", tmp_path)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return tmp_path


def check(images: Images) -> None:
    for x, labels in ((images.train, images.train_labels), (images.held_out, images.held_out_labels)):
        assert x.dtype == torch.float32 and labels.dtype == torch.int64
        assert len(x) == len(labels)
        assert x.min() == -1 and x.max() == 1
        assert set(labels.tolist()) == set(range(images.classes))


def test_three_classes_are_withheld_from_base_training():
    whole, some = load("digits"), load("adaptation")
    assert isinstance(whole, Images) and isinstance(some, Images)
    data = TrainingSet(some.train, some.train_labels, some.classes, some.withheld)
    assert set(data.shown.labels.tolist()) == set(range(7)) and set(data.new.labels.tolist()) == {7, 8, 9}
    assert len(data.shown.labels) + len(data.new.labels) == len(whole.train)
    assert torch.equal(data.shown.images, whole.train[whole.train_labels < 7])
    assert whole.source in some.source != whole.source
    everything = TrainingSet(whole.train, whole.train_labels, whole.classes)
    assert everything.shown is everything and not len(everything.new.labels)


def test_digits_are_split_the_same_way_for_ever():
    digits = load("digits")
    assert isinstance(digits, Images)
    check(digits)
    assert digits.train.shape == (1437, 1, 8, 8) and digits.held_out.shape == (360, 1, 8, 8)
    share = digits.held_out_labels.bincount() / (digits.train_labels.bincount() + digits.held_out_labels.bincount())
    assert (share - 0.2).abs().max() < 0.01
    assert digits.source.endswith("a4bcc488aa6a116ef86e1267506f24fa3d71a62a08b96b94c90a22dca6adfca3")


def test_digest_ignores_the_order_but_not_the_split():
    a = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
    assert files.digest(a[:4], a[4:]) == files.digest(a[[3, 1, 0, 2]], a[[5, 4]])
    assert files.digest(a[:4], a[4:]) != files.digest(a[2:], a[:2])


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_missing_files_give_one_sentence_that_says_where(name, empty_place):
    with pytest.raises(MissingData, match=f"^Put the .* into .*{name} .*no network.*$") as caught:
        load(name)
    assert str(empty_place) in str(caught.value) and "\n" not in str(caught.value)


def test_the_folder_of_the_checkout_comes_before_that_of_a_run(empty_place, monkeypatch):
    """A worker starts its runs in folders that are gone afterwards, and downloads with them."""
    monkeypatch.delenv("ATLAS_DATA")
    (empty_place / "run").mkdir()
    monkeypatch.chdir(empty_place / "run")
    assert files.folders("mnist")[0] == empty_place / "data" / "mnist"
    published = {"https://example.org/a.gz": "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"}
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"content"))
    assert files.download("mnist", published, "the file").is_relative_to(empty_place / "data")


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(MissingData, match=", ".join(sorted(LOADERS))):
        load("minst")


def test_download_keeps_only_what_has_the_published_checksum(empty_place, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"content"))
    published = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"  # sha256 of b"content"
    folder = files.download("mnist", {"https://example.org/a.gz": published}, "the file")
    assert (folder / "a.gz").read_bytes() == b"content"
    with pytest.raises(MissingData, match="no longer serves the published file"):
        files.download("mnist", {"https://example.org/b.gz": "0" * 64}, "the file")
    assert [path.name for path in folder.iterdir()] == ["a.gz"]


@pytest.mark.parametrize("compressed", [True, False])
def test_mnist_reads_idx_files_and_pads_with_background(compressed, empty_place, monkeypatch):
    shapes = {name: (20, *shape[1:]) for name, shape in mnist.SHAPES.items()}
    monkeypatch.setattr(mnist, "SHAPES", shapes)
    folder = empty_place / "data" / "mnist"
    folder.mkdir(parents=True)
    for name, shape in shapes.items():
        values = np.tile(np.arange(10, dtype=np.uint8), 2) if len(shape) == 1 else np.zeros(shape, np.uint8)
        if len(shape) == 3:
            values[:, 0, 0] = 255
        content = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + values.tobytes()
        path = folder / (f"{name}.gz" if compressed else name)
        path.write_bytes(gzip.compress(content) if compressed else content)
    images = load("mnist")
    assert isinstance(images, Images)
    check(images)
    assert images.train.shape == (20, 1, 32, 32)
    assert images.train[0, 0, 2, 2] == 1 and images.train[0].sum() == 1 - (32 * 32 - 1)
    (folder / next(path.name for path in folder.iterdir())).write_bytes(gzip.compress(b"") if compressed else b"")
    with pytest.raises(MissingData, match="is not the published MNIST file"):
        load("mnist")


@pytest.fixture
def colours(empty_place, monkeypatch):
    """Twenty images a split, of one colour each, and the folder to write them in."""
    monkeypatch.setattr(cifar10, "COUNTS", {"train": 20, "test": 20})
    folder = empty_place / "atlas" / "cifar10"
    folder.mkdir(parents=True)
    images = np.zeros((20, 32, 32, 3), np.uint8)
    images[:, :, :, 0] = np.linspace(0, 255, 20, dtype=np.uint8)[:, None, None]
    return folder, images, np.tile(np.arange(10), 2)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("nested", [True, False])
def test_cifar10_reads_parquet_and_says_which_copy(form, nested, colours):
    folder, images, labels = colours
    for split in cifar10.COUNTS:
        encoded = []
        for image in images:
            Image.fromarray(image).save(buffer := io.BytesIO(), form)
            encoded.append({"bytes": buffer.getvalue()} if nested else buffer.getvalue())
        table = pyarrow.table({"img": encoded, "label": labels})
        pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    loaded = load("cifar10")
    assert isinstance(loaded, Images)
    assert loaded.shape == (3, 32, 32)
    assert ("JPEG-recompressed" in loaded.source) == (form == "JPEG")
    assert torch.allclose(loaded.train[-1, :, 0, 0], torch.tensor([1.0, -1.0, -1.0]), atol=0.03)


def test_cifar10_reads_the_authors_archive(colours):
    folder, images, labels = colours
    records = np.concatenate([labels[:, None].astype(np.uint8), images.transpose(0, 3, 1, 2).reshape(20, -1)], 1)
    parts = {f"data_batch_{i + 1}.bin": records[4 * i : 4 * i + 4] for i in range(5)} | {"test_batch.bin": records}
    with tarfile.open(folder / cifar10.ARCHIVE, "w:gz") as archive:
        for name, rows in parts.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = rows.nbytes
            archive.addfile(info, io.BytesIO(rows.tobytes()))
    loaded = load("cifar10")
    assert isinstance(loaded, Images)
    check(loaded)
    assert torch.equal(loaded.train, cifar10.pixels(images)) and "lossless" in loaded.source


@pytest.mark.skipif(not files.locate("mnist", mnist.complete), reason="the MNIST files are not there")
def test_real_mnist():
    images = load("mnist")
    assert isinstance(images, Images)
    check(images)
    assert images.train.shape == (60_000, 1, 32, 32) and images.held_out.shape == (10_000, 1, 32, 32)
    assert images.train_labels.bincount()[1] == 6742
    assert (images.train[:, :, :2] == -1).all()


@pytest.mark.slow
@pytest.mark.skipif(not files.locate("cifar10", cifar10.complete), reason="the CIFAR-10 files are not there")
def test_real_cifar10():
    images = load("cifar10")
    assert isinstance(images, Images)
    check(images)
    assert images.train.shape == (50_000, 3, 32, 32) and images.held_out.shape == (10_000, 3, 32, 32)
    assert (images.train_labels.bincount() == 5_000).all()


def test_ring_samples_follow_its_density():
    ring = load("mixture")
    assert isinstance(ring, Mixture)
    x = ring.sample(20_000, torch.Generator().manual_seed(0))
    nearest = torch.cdist(x, ring.means).argmin(1)
    assert (nearest.bincount() / len(x) - 1 / 8).abs().max() < 0.01
    assert abs((x - ring.means[nearest]).std().item() - 0.05) < 0.001
    axis = torch.linspace(-1.5, 1.5, 601)
    grid = torch.cartesian_prod(axis, axis)
    assert abs(ring.log_prob(grid).exp().sum().item() * 0.005**2 - 1) < 1e-3
