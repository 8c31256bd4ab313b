"""`mask2former convert`: a checkpoint of the paper's code in, a model folder out."""

import json
import os
import pickle

import pytest
import torch

from mask2former import Mask2FormerForUniversalSegmentation
from mask2former.checkpoints.huggingface import to_huggingface
from mask2former.checkpoints.weights import read_weights
from mask2former.cli import convert, main
from tests.checkpoints.test_detectron2 import KINDS, state_of, write_pkl
from tests.reference import randomise, relative_error, tiny_model


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_computes_with_the_folder_what_the_model_computes(kind, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    model = randomise(KINDS[kind](), seed=4)
    source = write_pkl(tmp_path / "model_final.pkl", state_of(model))
    assert main(["convert", str(source), str(tmp_path / "model")]) == 0
    theirs, info = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(info.values()), info
    theirs.save_pretrained(tmp_path / "again")
    _, found = read_weights(tmp_path / "again")
    expected = to_huggingface(model.state_dict(), model.config)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    ours = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "model").double()
    pixels = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(5)).double()
    with torch.no_grad():
        results = [m(pixels) for m in (model.double(), ours, theirs.double().eval())]
    for result in results[1:]:
        for name in ("class_queries_logits", "masks_queries_logits"):
            # measured: 0 for ours, at most 1.6e-15 for transformers'
            assert relative_error(result[name], results[0][name]) < 1e-13


def test_the_command_says_what_the_model_is_and_what_it_assumed(tmp_path, capsys):
    source = tmp_path / "model_0009999.pth"
    torch.save({"model": state_of(KINDS["swin"]()), "iteration": 9999}, source)
    assert main(["convert", str(source), str(tmp_path / "model")]) == 0
    out, err = capsys.readouterr()
    assert out == (
        f"{tmp_path / 'model'}: Swin with depths [1, 2, 1, 1], embed_dim 8, window_size 3; "
        "1 encoder layers, 3 decoder layers, 6 queries, 3 labels\n"
    )
    for line in (
        "pre_norm False",
        "classes called LABEL_0, ... (--labels FILE)",
        "things: not known (--things IDS)",
        "images: short side 800",
    ):
        assert f"\n  {line}" in err
    assert "\n  backbone_config.drop_path_rate 0.3\n" in err


def test_the_folder_equals_transformers(tmp_path):
    source = write_pkl(tmp_path / "a.pkl", state_of(KINDS["bottleneck"]()))
    assert main(["convert", str(source), str(tmp_path / "deep" / "model")]) == 0
    folder = tmp_path / "deep" / "model"
    names = ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    config = json.loads((folder / "config.json").read_text())
    assert config["backbone_config"]["model_type"] == "resnet"
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert (processor["ignore_index"], processor["num_labels"]) == (255, 3)
    assert processor["size"] == {"shortest_edge": 800, "longest_edge": 1333}
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Mask2FormerImageProcessor.from_pretrained(folder)
    assert (theirs.size["shortest_edge"], theirs.size["longest_edge"]) == (800, 1333)
    assert (theirs.ignore_index, list(theirs.image_mean)) == (255, [0.485, 0.456, 0.406])


@pytest.mark.parametrize(
    ("count", "dataset", "first", "things"),
    [
        (133, "COCO", "person", list(range(80))),
        (80, "COCO, things only", "person", list(range(80))),
        (19, "Cityscapes", "road", list(range(11, 19))),
        (65, "Mapillary Vistas", "Bird", None),
    ],
)
def test_models_of_published_data_sets_get_their_classes(
    count, dataset, first, things, tmp_path, capsys
):
    source = write_pkl(tmp_path / "a.pkl", state_of(tiny_model("swin", num_labels=count)))
    assert main(["convert", str(source), str(tmp_path / "model")]) == 0
    err = capsys.readouterr().err
    assert f"\n  classes of {dataset}: {first}, ... (--labels FILE)\n" in err
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["id2label"]["0"] == first and len(config["id2label"]) == count
    processor = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    assert things is None or processor["thing_label_ids"] == things
    assert config["thing_label_ids"] == processor["thing_label_ids"]
    assert f"\n  things: {len(processor['thing_label_ids'])} of the {count} classes" in err


def test_other_classes_are_given(tmp_path, capsys):
    source = write_pkl(tmp_path / "a.pkl", state_of(KINDS["swin"]()))
    (tmp_path / "names.txt").write_text("cat\nwood pile\nsky\n")
    command = ["convert", str(source), str(tmp_path / "model"), "--things", "0-1"]
    assert main([*command, "--labels", str(tmp_path / "names.txt")]) == 0
    err = capsys.readouterr().err
    assert "--labels" not in err and "--things" not in err
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "wood pile", "2": "sky"}
    processor = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    assert config["thing_label_ids"] == processor["thing_label_ids"] == [0, 1]


@pytest.mark.parametrize(
    ("text", "ids"), [("none", []), ("7", [7]), ("0-2,7", [0, 1, 2, 7]), ("3,1-3", [1, 2, 3])]
)
def test_things_are_numbers_and_ranges(text, ids):
    assert convert._label_ids(text) == ids


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "1-2-3", "5-2"])
def test_things_that_are_no_numbers_are_refused(text, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["convert", "a.pkl", str(tmp_path / "model"), f"--things={text}"])
    assert exit.value.code == 2
    assert "is not a list of numbers and ranges such as 0-4,7" in capsys.readouterr().err


def test_classes_that_do_not_fit_are_named(tmp_path, capsys):
    source = write_pkl(tmp_path / "a.pkl", state_of(KINDS["swin"]()))
    names = tmp_path / "names.txt"
    model = str(tmp_path / "model")

    def message(*options: str) -> str:
        assert main(["convert", str(source), model, *options]) == 1
        return capsys.readouterr().err

    assert "names class 3, but the classes of" in message("--things", "0-3")
    assert "names.txt cannot be read (No such file" in message("--labels", str(names))
    names.write_text("cat\ndog\n")
    assert "names of the 3 classes of" in message("--labels", str(names))
    names.write_text("cat\n\ndog\n")
    assert "has 3 lines, some of them empty." in message("--labels", str(names))
    names.write_bytes(b"\xff\xfe\n")
    assert "names.txt cannot be read" in message("--labels", str(names))
    assert not (tmp_path / "model").exists()


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("broken-in",)


def fails(capsys, source, folder) -> str:
    """The one line of a command that fails and leaves nothing behind."""
    before = sorted(folder.parent.iterdir())
    assert main(["convert", str(source), str(folder)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert sorted(folder.parent.iterdir()) == before
    return err


@pytest.mark.parametrize("name", ["a.pkl", "a.pth"])
def test_a_malicious_pickle_is_refused(tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    state = state_of(KINDS["swin"]())
    contents = {"model": {n: t.numpy() for n, t in state.items()}, "__author__": Exploit()}
    if name == "a.pkl":
        (tmp_path / name).write_bytes(pickle.dumps(contents, 2))
    else:
        torch.save(contents, tmp_path / name)
    message = fails(capsys, tmp_path / name, tmp_path / "model")
    assert "mkdir, which is not read because it could run code" in message


def test_a_cut_off_file_is_named(tmp_path, capsys):
    source = write_pkl(tmp_path / "a.pkl", state_of(KINDS["swin"]()))
    source.write_bytes(source.read_bytes()[:-100])
    assert "a.pkl is cut off, damaged" in fails(capsys, source, tmp_path / "model")


def test_tensors_that_make_no_model_are_named(tmp_path, capsys):
    state = state_of(KINDS["swin"]())
    state["sem_seg_head.pixel_decoder.mask_features.weight"] = torch.zeros(32, 44, 1, 1)
    source = write_pkl(tmp_path / "a.pkl", state)
    assert "a.pkl make no model: feature_size" in fails(capsys, source, tmp_path / "model")


def test_a_source_that_is_none_is_named(tmp_path, capsys):
    folder = tmp_path / "model"
    assert "a.pkl does not exist; give" in fails(capsys, tmp_path / "a.pkl", folder)
    assert "is a folder; give the .pkl" in fails(capsys, tmp_path, folder)


def test_nothing_is_overwritten(tmp_path, capsys):
    source = write_pkl(tmp_path / "a.pkl", state_of(KINDS["swin"]()))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").touch()
    assert "exists and is not an empty folder" in fails(capsys, source, tmp_path / "full")
    assert "exists and is not an empty folder" in fails(capsys, source, source)
    (tmp_path / "empty").mkdir()
    assert main(["convert", str(source), str(tmp_path / "empty")]) == 0


def test_a_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    source = write_pkl(tmp_path / "a.pkl", state_of(KINDS["swin"]()))
    assert main(["convert", str(source), str(source / "model")]) == 1
    assert "cannot be written (Not a directory); give" in capsys.readouterr().err
