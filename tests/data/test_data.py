"""Every form of DATA; splits that are deterministic, disjoint and checked by content."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.data.augmentation import augment
from edgekit.data.dataset import Dataset, Split
from edgekit.data.preprocessing import Preprocessing
from edgekit.data.references import load_data
from edgekit.errors import DataError, EdgekitError, UsageError

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (140, 32, 32, 3), dtype=np.uint8)
Y = np.arange(140) % 10


def _disjoint(data: Dataset) -> None:
    parts = [set(split.hashes()) for split in (data.train, data.validation, data.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert all(parts)


def _same(a: Dataset, b: Dataset) -> None:
    for part in ("train", "validation", "test"):
        assert getattr(a, part).digest == getattr(b, part).digest


def _npz(path: Path) -> str:
    np.savez(path / "c.npz", train_x=X[:100], train_y=Y[:100], test_x=X[100:], test_y=Y[100:])
    return f"cifar10:{path / 'c.npz'}"


def _binary(path: Path) -> str:
    for name, part in (("data_batch_1.bin", slice(0, 100)), ("test_batch.bin", slice(100, 140))):
        planes = X[part].transpose(0, 3, 1, 2).reshape(-1, 3072)
        (path / name).write_bytes(np.concatenate([Y[part, None].astype(np.uint8), planes], 1).tobytes())
    return f"cifar10:{path}"


def _python(path: Path) -> str:
    for name, part in (("data_batch_1", slice(0, 100)), ("test_batch", slice(100, 140))):
        planes = X[part].transpose(0, 3, 1, 2).reshape(-1, 3072)
        (path / name).write_bytes(pickle.dumps({b"data": planes, b"labels": Y[part].tolist()}, protocol=2))
    return f"cifar10:{path}"


def _tree(path: Path) -> str:
    for part, chosen in (("train", range(100)), ("test", range(100, 140))):
        for i in chosen:
            folder = path / part / f"class{Y[i]}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(X[i]).save(folder / f"{i:03d}.png")
    return f"cifar10:{path}"


@pytest.mark.parametrize("write", [_npz, _binary, _python, _tree])
def test_every_form_of_cifar10_is_the_same_data(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = load_data(write(tmp_path))
    _disjoint(data)
    _same(data, load_data(write(tmp_path)))
    assert (len(data.train), len(data.validation), len(data.test)) == (90, 10, 40)
    assert sorted(data.test.hashes()) == sorted(load_data(_npz(tmp_path)).test.hashes())
    assert data.augmentation == "crop+flip"
    positions = {content: i for i, content in enumerate(data.test.hashes())}
    other = load_data(_npz(tmp_path))
    for content, label in zip(other.test.hashes(), other.test.labels, strict=True):
        assert data.test.labels[positions[content]] == label


def test_a_hostile_python_batch_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return Path.mkdir, (tmp_path / "ran",)

    _python(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Evil()}, protocol=2))
    with pytest.raises(DataError, match="no CIFAR-10 batch"):
        load_data(f"cifar10:{tmp_path}")
    assert not (tmp_path / "ran").exists()


def _idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def test_idx_files(tmp_path: Path) -> None:
    gray = X[..., 0]
    _idx(tmp_path / "train-images-idx3-ubyte.gz", gray[:100])
    _idx(tmp_path / "train-labels-idx1-ubyte.gz", Y[:100])
    _idx(tmp_path / "t10k-images-idx3-ubyte.gz", gray[100:])
    _idx(tmp_path / "t10k-labels-idx1-ubyte.gz", Y[100:])
    data = load_data(f"idx:{tmp_path}")
    _disjoint(data)
    np.testing.assert_array_equal(data.test.images(np.arange(40))[..., 0], gray[100:])
    content = (tmp_path / "t10k-images-idx3-ubyte.gz").read_bytes()
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="damaged"):
        load_data(f"idx:{tmp_path}")


def test_folders_without_splits_are_split_by_content(tmp_path: Path) -> None:
    for i in range(140):
        folder = tmp_path / "ab"[i % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(X[i]).save(folder / f"{i}.png")
    data = load_data(f"folder:{tmp_path}")
    _disjoint(data)
    assert data.labels == ("a", "b")
    assert len(data.test) == 21
    # Other names, so another order of the files: the same images are held out.
    for file in list(tmp_path.rglob("*.png")):
        file.rename(file.with_name(f"{999 - int(file.stem)}.png"))
    assert set(load_data(f"folder:{tmp_path}").test.hashes()) == set(data.test.hashes())


def test_digits_are_scikit_learns(tmp_path: Path) -> None:
    data = load_data("digits")
    _disjoint(data)
    _same(data, load_data("digits"))
    assert len(data.train) + len(data.validation) + len(data.test) == 1797


def test_sets_that_share_images_are_refused_or_the_copies_left_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", train_x=X[:100], train_y=Y[:100], test_x=X[95:140], test_y=Y[95:140])
    with pytest.raises(DataError, match="5 training images are in the test set"):
        load_data(f"npz:{tmp_path / 'd.npz'}")
    data = load_data(f"npz:{tmp_path / 'd.npz'}?overlap=drop")
    _disjoint(data)
    assert len(data.train) + len(data.validation) == 95


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("digit", UsageError, "Did you mean digits"),
        ("cifar10:", UsageError, "no path"),
        ("cifar10:/nowhere", DataError, "does not exist"),
        ("folder:/nowhere", DataError, "does not exist"),
        ("npz:/nowhere.npz", DataError, "nowhere"),
        ("digits?validation=2", UsageError, "between 0 and 1"),
        ("digits?shuffle=1", UsageError, "no option shuffle"),
        ("no_such_package_x:load", UsageError, "no_such_package_x"),
    ],
)
def test_what_is_no_data(reference: str, error: type[EdgekitError], message: str) -> None:
    with pytest.raises(error, match=message):
        load_data(reference)


def test_a_factory_of_arrays_or_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_data.py").write_text(
        "import numpy as np\n"
        "def arrays():\n"
        "    rng = np.random.default_rng(0)\n"
        "    x = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8)\n"
        "    return x[:40], np.arange(40) % 3, x[40:], np.arange(20) % 3\n"
        "def floats():\n"
        "    x, y, u, v = arrays()\n"
        "    return x.astype(np.float32), y, u.astype(np.float32), v\n"
        "def nothing():\n"
        "    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert len(load_data("my_data:arrays").labels) == 3
    assert load_data("my_data:floats").train.images(np.arange(2)).dtype == np.float32
    with pytest.raises(DataError, match="gave a int"):
        load_data("my_data:nothing")


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    _tree(tmp_path)
    victim = sorted((tmp_path / "train").rglob("*.png"))[3]
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(DataError, match=victim.name):
        load_data(f"folder:{tmp_path}")


def test_preprocessing_is_the_formula() -> None:
    made = Preprocessing(size=(32, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))(X[:3])
    expected = (X[:3].astype(np.float64) / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]
    np.testing.assert_allclose(made, expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
    raw = Preprocessing(size=(32, 32), color="bgr", scale=1.0, mean=(104.0, 117.0, 123.0))(X[:3])
    np.testing.assert_allclose(raw[:, 0], X[:3, :, :, 2].astype(np.float64) - 104, atol=1e-4)
    gray = Preprocessing(size=(32, 32), color="gray", scale=1.0)(X[:1])
    np.testing.assert_array_equal(gray[0, 0], np.asarray(Image.fromarray(X[0]).convert("L")), strict=False)


def test_an_image_of_the_wrong_size_is_refused_unless_asked() -> None:
    with pytest.raises(DataError, match="32×32 pixels, the network takes 24×24"):
        Preprocessing(size=(24, 24))(X[:1])
    for resize in ("stretch", "crop"):
        assert Preprocessing(size=(24, 20), resize=resize)(X[:2]).shape == (2, 3, 24, 20)  # type: ignore[arg-type]


def test_augmentation_is_drawn_from_its_seed_alone() -> None:
    a, b, c = (augment(X[:20], "crop+flip", seed) for seed in ((0, 1), (0, 1), (0, 2)))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    assert augment(X[:20], "none", (0,)) is not None
    # Every augmented image is a window of the padded original or of its mirror.
    padded = np.pad(X[:20], ((0, 0), (4, 4), (4, 4), (0, 0)))
    for image, original in zip(np.asarray(a), padded, strict=True):
        windows = [original[i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
        assert any(np.array_equal(image, w) or np.array_equal(image, w[:, ::-1]) for w in windows)


def test_a_part_of_a_sorted_split_has_all_its_classes() -> None:
    labels = np.repeat(np.arange(10), 20)
    split = Split(np.zeros((200, 4), np.float32), labels)
    assert set(labels[split.spread(20)]) == set(range(10))
    assert split.spread(20).tolist() == list(range(0, 200, 10))
    assert split.spread(500).tolist() == split.spread().tolist() == list(range(200))
    seen = np.concatenate([y for _, y in split.batches(None, 7, limit=20)])
    np.testing.assert_array_equal(seen, np.repeat(np.arange(10), 2))
