"""The examples of the documentation, as they stand there.

Three things differ: the import line names this package, images are local files, and the weights of
the models they name are small and random, written by transformers.
"""

import doctest
import re

import numpy as np
import pytest
import torch
from PIL import Image

transformers = pytest.importorskip("transformers")

CONFIGURATION = """
>>> from transformers import Mask2FormerConfig, Mask2FormerModel

>>> # Initializing a Mask2Former facebook/mask2former-swin-small-coco-instance configuration
>>> configuration = Mask2FormerConfig()

>>> # Initializing a model (with random weights) from the facebook/mask2former-swin-small-coco-instance style configuration
>>> model = Mask2FormerModel(configuration)

>>> # Accessing the model configuration
>>> configuration = model.config
"""  # noqa: E501

INSTANCE = """
>>> from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation
>>> from PIL import Image
>>> import requests
>>> import torch

>>> # Load Mask2Former trained on COCO instance segmentation dataset
>>> image_processor = AutoImageProcessor.from_pretrained("facebook/mask2former-swin-small-coco-instance")
>>> model = Mask2FormerForUniversalSegmentation.from_pretrained(
...     "facebook/mask2former-swin-small-coco-instance"
... )

>>> url = "http://images.cocodataset.org/val2017/000000039769.jpg"
>>> image = Image.open(requests.get(url, stream=True).raw)
>>> inputs = image_processor(image, return_tensors="pt")

>>> with torch.no_grad():
...     outputs = model(**inputs)

>>> # Model predicts class_queries_logits of shape `(batch_size, num_queries)`
>>> # and masks_queries_logits of shape `(batch_size, num_queries, height, width)`
>>> class_queries_logits = outputs.class_queries_logits
>>> masks_queries_logits = outputs.masks_queries_logits

>>> # Perform post-processing to get instance segmentation map
>>> pred_instance_map = image_processor.post_process_instance_segmentation(
...     outputs, target_sizes=[(image.height, image.width)]
... )[0]
>>> print(pred_instance_map.shape)
torch.Size([480, 640])
"""  # noqa: E501

SEMANTIC = """
>>> from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation
>>> from PIL import Image
>>> import requests
>>> import torch

>>> # Load Mask2Former trained on ADE20k semantic segmentation dataset
>>> image_processor = AutoImageProcessor.from_pretrained("facebook/mask2former-swin-small-ade-semantic")
>>> model = Mask2FormerForUniversalSegmentation.from_pretrained("facebook/mask2former-swin-small-ade-semantic")

>>> url = (
...     "https://huggingface.co/datasets/hf-internal-testing/fixtures_ade20k/resolve/main/ADE_val_00000001.jpg"
... )
>>> image = Image.open(requests.get(url, stream=True).raw)
>>> inputs = image_processor(image, return_tensors="pt")

>>> with torch.no_grad():
...     outputs = model(**inputs)

>>> # Model predicts class_queries_logits of shape `(batch_size, num_queries)`
>>> # and masks_queries_logits of shape `(batch_size, num_queries, height, width)`
>>> class_queries_logits = outputs.class_queries_logits
>>> masks_queries_logits = outputs.masks_queries_logits

>>> # Perform post-processing to get semantic segmentation map
>>> pred_semantic_map = image_processor.post_process_semantic_segmentation(
...     outputs, target_sizes=[(image.height, image.width)]
... )[0]
>>> print(pred_semantic_map.shape)
torch.Size([512, 683])
"""  # noqa: E501

PANOPTIC = """
>>> from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation
>>> from PIL import Image
>>> import requests
>>> import torch

>>> # Load Mask2Former trained on CityScapes panoptic segmentation dataset
>>> image_processor = AutoImageProcessor.from_pretrained("facebook/mask2former-swin-small-cityscapes-panoptic")
>>> model = Mask2FormerForUniversalSegmentation.from_pretrained(
...     "facebook/mask2former-swin-small-cityscapes-panoptic"
... )

>>> url = "https://cdn-media.huggingface.co/Inference-API/Sample-results-on-the-Cityscapes-dataset-The-above-images-show-how-our-method-can-handle.png"
>>> image = Image.open(requests.get(url, stream=True).raw)
>>> inputs = image_processor(image, return_tensors="pt")

>>> with torch.no_grad():
...     outputs = model(**inputs)

>>> # Model predicts class_queries_logits of shape `(batch_size, num_queries)`
>>> # and masks_queries_logits of shape `(batch_size, num_queries, height, width)`
>>> class_queries_logits = outputs.class_queries_logits
>>> masks_queries_logits = outputs.masks_queries_logits

>>> # Perform post-processing to get panoptic segmentation map
>>> pred_panoptic_map = image_processor.post_process_panoptic_segmentation(
...     outputs, target_sizes=[(image.height, image.width)]
... )[0]["segmentation"]
>>> print(pred_panoptic_map.shape)
torch.Size([338, 676])
"""  # noqa: E501

MODEL_CARD = """
import requests
import torch
from PIL import Image
from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation


# load Mask2Former fine-tuned on Cityscapes semantic segmentation
processor = AutoImageProcessor.from_pretrained("facebook/mask2former-swin-large-cityscapes-semantic")
model = Mask2FormerForUniversalSegmentation.from_pretrained("facebook/mask2former-swin-large-cityscapes-semantic")

url = "http://images.cocodataset.org/val2017/000000039769.jpg"
image = Image.open(requests.get(url, stream=True).raw)
inputs = processor(images=image, return_tensors="pt")

with torch.no_grad():
    outputs = model(**inputs)

# model predicts class_queries_logits of shape `(batch_size, num_queries)`
# and masks_queries_logits of shape `(batch_size, num_queries, height, width)`
class_queries_logits = outputs.class_queries_logits
masks_queries_logits = outputs.masks_queries_logits

# you can pass them to processor for postprocessing
predicted_semantic_map = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])[0]
# we refer to the demo notebooks for visualization (see "Resources" section in the Mask2Former docs)
"""  # noqa: E501


def localised(example):
    """The example with this package's import line and an image beside it."""
    example = re.sub(r"(>>> )?import requests\n", "", example)
    example = example.replace("requests.get(url, stream=True).raw", "url")
    example = re.sub(r'"https?://[^"]+"', '"image.png"', example)
    return example.replace("from transformers import", "from mask2former import")


def run_doctest(example):
    """Runs the example, compares what it prints, and returns its variables."""
    test = doctest.DocTestParser().get_doctest(localised(example), {}, "example", None, None)
    assert test.examples
    report = []
    result = doctest.DocTestRunner().run(test, out=report.append, clear_globs=False)
    assert result.failed == 0, "".join(report)
    return test.globs


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Makes the folder in which an example runs, with its image and its model; returns the model
    of transformers."""
    monkeypatch.chdir(tmp_path)

    def prepare(name, height, width, num_labels):
        rows, columns = np.mgrid[:height, :width]
        waves = [np.sin(rows / 40), np.cos(columns / 60), np.sin((rows + columns) / 25)]
        pixels = np.stack(waves, axis=-1) * 127 + 128
        Image.fromarray(pixels.astype(np.uint8)).save("image.png")
        model = confident_model(num_labels)
        model.save_pretrained(name)
        size = {"height": 384, "width": 384}  # as in these models' folders on the hub
        transformers.Mask2FormerImageProcessorPil(size=size).save_pretrained(name)
        return model

    return prepare


@torch.no_grad()
def confident_model(num_labels):
    """A small model of transformers with random weights, whose queries differ enough for some of
    their segments to reach the thresholds."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=4, out_features=stages
    )
    torch.manual_seed(3)
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=num_labels,
        num_queries=10,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        num_attention_heads=4,
        encoder_layers=1,
        encoder_feedforward_dim=32,
        decoder_layers=4,
        dim_feedforward=32,
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    decoder = model.model.transformer_module
    decoder.queries_features.weight.mul_(30)
    decoder.get_parameter("decoder.mask_predictor.mask_embedder.2.0.weight").mul_(100)
    model.class_predictor.weight.mul_(60)
    return model


def assert_logits_equal_transformers(variables, model):
    inputs, outputs = variables["inputs"], variables["outputs"]
    with torch.no_grad():
        expected = model(inputs["pixel_values"])
    for name in ("class_queries_logits", "masks_queries_logits"):
        result, reference = variables[name], getattr(expected, name)
        assert result is getattr(outputs, name)
        error = (result - reference).norm() / reference.norm()
        assert error < 1e-5  # measured 3.7e-7


def test_configuration():
    variables = run_doctest(CONFIGURATION)
    assert variables["configuration"] is variables["model"].config
    assert variables["configuration"].num_queries == 100


def test_instance_segmentation(workplace):
    model = workplace("facebook/mask2former-swin-small-coco-instance", 480, 640, 80)
    variables = run_doctest(INSTANCE)
    assert_logits_equal_transformers(variables, model)
    result = variables["pred_instance_map"]
    ids = [segment["id"] for segment in result["segments_info"]]
    assert ids
    assert result["segmentation"].unique().tolist() == [-1, *ids]


def test_semantic_segmentation(workplace):
    model = workplace("facebook/mask2former-swin-small-ade-semantic", 512, 683, 150)
    variables = run_doctest(SEMANTIC)
    assert_logits_equal_transformers(variables, model)
    assert len(variables["pred_semantic_map"].unique()) > 1


def test_panoptic_segmentation(workplace):
    model = workplace("facebook/mask2former-swin-small-cityscapes-panoptic", 338, 676, 19)
    variables = run_doctest(PANOPTIC)
    assert_logits_equal_transformers(variables, model)
    assert len(variables["pred_panoptic_map"].unique()) > 1


def test_model_card(workplace):
    model = workplace("facebook/mask2former-swin-large-cityscapes-semantic", 480, 640, 19)
    variables = {}
    exec(localised(MODEL_CARD), variables)
    assert_logits_equal_transformers(variables, model)
    assert variables["predicted_semantic_map"].shape == (480, 640)
    assert len(variables["predicted_semantic_map"].unique()) > 1
