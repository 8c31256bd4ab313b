import json
import os
from pathlib import Path
from unittest import mock

import pytest
import torch
from huggingface_hub import errors

from mask2former import DataError
from mask2former.checkpoints.weights import load_torch_file, read_weights, save_weights

LAYOUTS = ["safetensors", "safetensors shards", "bin", "bin shards"]


def weights():
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (3, 40), "b.weight": (20, 20), "b.bias": (20,), "c": ()}
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def write(folder: Path, layout: str) -> list[Path]:
    """The weights in one of the layouts, as transformers names the files; returns the files."""
    if layout.startswith("safetensors"):
        save_weights(folder, weights(), 800 if layout.endswith("shards") else "1GB")
    elif layout == "bin":
        torch.save(weights(), folder / "pytorch_model.bin")
    else:
        parts = (("a.weight", "c"), ("b.weight", "b.bias"))
        names = {
            n: f"pytorch_model-0000{i}-of-00002.bin" for i, p in enumerate(parts, 1) for n in p
        }
        for filename in set(names.values()):
            part = {n: t for n, t in weights().items() if names[n] == filename}
            torch.save(part, folder / filename)
        index = {"metadata": {"total_size": 1}, "weight_map": names}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return sorted(folder.iterdir())


def same(found, expected=None):
    expected = expected or weights()
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(tmp_path, layout):
    files = write(tmp_path, layout)
    assert len(files) == (3 if "shards" in layout else 1)
    path, found = read_weights(tmp_path)
    assert path in files and path.name.endswith("index.json") == ("shards" in layout)
    assert same(found)


def test_safetensors_are_preferred_to_a_pickle(tmp_path):
    write(tmp_path, "bin")
    save_weights(tmp_path, {"a": torch.ones(2)})
    assert same(read_weights(tmp_path)[1], {"a": torch.ones(2)})


def test_shards_are_no_larger_than_asked_unless_one_tensor_is(tmp_path):
    files = write(tmp_path, "safetensors shards")  # 480, 1600, 80 and 4 bytes, at most 800
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert [file.name for file in files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert index["metadata"]["total_size"] == 480 + 1600 + 80 + 4
    alone = [
        n for n, file in index["weight_map"].items() if file == index["weight_map"]["b.weight"]
    ]
    assert alone == ["b.weight"]


@pytest.mark.parametrize("first", ["safetensors", "safetensors shards"])
@pytest.mark.parametrize("then", ["safetensors", "safetensors shards"])
def test_saving_again_leaves_no_weights_of_before(tmp_path, first, then):
    (tmp_path / "model.bin").touch()  # not ours
    save_weights(
        tmp_path, {"a": torch.zeros(9), "b": torch.ones(9)}, 40 if "shards" in first else 99
    )
    write(tmp_path, then)
    assert same(read_weights(tmp_path)[1])
    assert len(list(tmp_path.iterdir())) == (4 if "shards" in then else 2)


def test_a_size_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="many"):
        save_weights(tmp_path, weights(), "many")


def test_weights_are_as_readable_as_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    mode = save_weights(tmp_path / "model", weights()).stat().st_mode
    assert mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("keep", [0, 5, 100, -7])
def test_a_cut_off_file_is_named(tmp_path, layout, keep):
    for file in write(tmp_path, layout):
        whole = file.read_bytes()
        file.write_bytes(whole[:keep])
        with pytest.raises(DataError, match=file.name) as caught:
            read_weights(tmp_path)
        assert "\n" not in str(caught.value)
        file.write_bytes(whole)


@pytest.mark.parametrize("layout", ["safetensors shards", "bin shards"])
def test_a_missing_shard_is_named(tmp_path, layout):
    shard = write(tmp_path, layout)[0]
    shard.unlink()
    with pytest.raises(DataError, match=f"index.json names {shard.name}, which is not there"):
        read_weights(tmp_path)


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path):
    write(tmp_path, "bin shards")
    torch.save({"a.weight": torch.ones(1)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(DataError, match="looks for 'c' in pytorch_model-00001-of-00002.bin"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "deep/a.safetensors", 3])
def test_an_index_does_not_lead_out_of_its_folder(tmp_path, name):
    index = {"weight_map": {"a": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="has no weight_map"):
        read_weights(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(DataError, match=r"has no model\.safetensors"):
        read_weights(tmp_path)


MKDIR = os.mkdir.__module__ + ".mkdir"  # of "posix" or "nt"


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("broken-in",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_of_torch_is_not_run(tmp_path, monkeypatch, legacy):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": Exploit()}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(DataError, match=rf"holds the Python object {MKDIR}, which is not read"):
        read_weights(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_model.bin"]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([1, 2], "is a list instead of named"),
        ({"a": 3}, "has an entry 'a' of type int where tensors"),
    ],
)
def test_a_file_of_torch_without_named_tensors_is_refused(tmp_path, contents, message):
    torch.save(contents, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=message):
        read_weights(tmp_path)


@pytest.mark.parametrize("legacy", [False, True])
def test_every_way_to_cut_off_a_file_of_torch_is_a_data_error(tmp_path, legacy):
    file = tmp_path / "pytorch_model.bin"
    torch.save(weights(), file, _use_new_zipfile_serialization=not legacy)
    whole = file.read_bytes()
    for keep in range(0, len(whole), 13):
        file.write_bytes(whole[:keep])
        with pytest.raises(DataError, match=file.name):
            load_torch_file(file)


def test_hub_files_are_looked_for_in_turn(tmp_path):
    write(tmp_path, "bin")
    asked = []

    def download(name, filename, **_):
        asked.append(filename)
        if not (tmp_path / filename).exists():
            raise errors.EntryNotFoundError("404")
        return str(tmp_path / filename)

    with mock.patch("huggingface_hub.hf_hub_download", side_effect=download):
        path, found = read_weights("owner/model")
    assert path == tmp_path / "pytorch_model.bin" and same(found)
    assert asked == ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]


def test_an_unreachable_hub_is_not_taken_for_a_missing_file():
    with (
        mock.patch("huggingface_hub.hf_hub_download", side_effect=OSError("reset")) as download,
        pytest.raises(DataError, match="Downloading model.safetensors of 'owner/model' failed"),
    ):
        read_weights("owner/model")
    assert download.call_count == 1
