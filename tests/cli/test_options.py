"""What options that several commands have mean."""

import shutil
from typing import get_args

import pytest
import torch

from mask2former.cli.options import TASKS, choose_device, load_predictor, open_data
from mask2former.cli.usage import UsageError
from mask2former.configuration.model import Task
from mask2former.data.open_dataset import find_dataset
from mask2former.data.rendering import render_dataset
from mask2former.images.processor import Mask2FormerImageProcessor
from mask2former.predictor import default_device


def test_the_commands_know_every_task():
    assert get_args(Task) == TASKS


def test_a_named_device_is_taken_and_without_a_name_the_default():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device(None) == default_device()


@pytest.mark.parametrize("name", ["quantum", "cuda:99", "meta"])
def test_a_device_that_cannot_be_used_is_a_usage_error(name):
    with pytest.raises(UsageError, match=name):
        choose_device(name)


def test_a_folder_without_a_processor_is_said_on_stderr(tiny_model, tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_model / name, tmp_path)
    predictor = load_predictor(str(tmp_path), torch.device("cpu"))
    assert predictor.processor == Mask2FormerImageProcessor()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mask2former: {tmp_path} has no preprocessor_config.json; images are")


def test_an_option_or_a_task_that_does_not_apply_to_the_data_is_a_usage_error(tmp_path):
    render_dataset(tmp_path, "semantic", [1], [], 32)
    found = find_dataset(tmp_path)
    assert open_data(found, None, None, False, False).task == "semantic"
    with pytest.raises(UsageError, match="does not suit instance"):
        open_data(found, None, None, False, False, "instance")
    with pytest.raises(UsageError, match="--images"):
        open_data(found, None, tmp_path, False, False)
