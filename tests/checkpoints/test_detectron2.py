"""The key table is compared with a second, independent description: from transformers' names to
those of the paper's code, one parameter at a time and by regular expressions. It follows the
modules of facebookresearch/Mask2Former and the renaming in transformers' conversion script."""

import pickle
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch

from mask2former import DataError, Mask2FormerForUniversalSegmentation, ResNetConfig
from mask2former.checkpoints.detectron2 import from_detectron2, infer_config, read_detectron2
from mask2former.checkpoints.huggingface import to_huggingface
from tests.reference import randomise, relative_error, tiny_model

BOTTLENECK = ResNetConfig(
    embedding_size=8,
    hidden_sizes=[16, 32, 48, 64],
    depths=[1, 2, 1, 1],
    layer_type="bottleneck",
)
KINDS = {
    "swin": lambda: tiny_model("swin"),
    "basic": lambda: tiny_model("resnet"),
    "bottleneck": lambda: tiny_model(backbone_config=BOTTLENECK, num_queries=9),
    "projected": lambda: tiny_model(hidden_dim=64, enforce_input_projection=True, encoder_layers=2),
    "wide": lambda: tiny_model("swin", mask_feature_size=48, num_labels=7, decoder_layers=2),
}

ENCODER = r"model\.pixel_level_module\.encoder\."
BLOCK = ENCODER + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
STAGE = ENCODER + r"encoder\.stages\.(\d+)\.layers\.(\d+)\."
PIXEL = r"model\.pixel_level_module\.decoder\."
LAYER = r"model\.transformer_module\.decoder\.layers\.(\d+)\."
HEAD = "sem_seg_head.pixel_decoder."
PREDICTOR = "sem_seg_head.predictor."


def plus(number: str, more: int) -> str:
    return str(int(number) + more)


# transformers' name -> the paper's; a function where a number differs.
RENAMED = [
    (ENCODER + r"embeddings\.patch_embeddings\.projection\.", "backbone.patch_embed.proj."),
    (ENCODER + r"embeddings\.norm\.", "backbone.patch_embed.norm."),
    (BLOCK + r"layernorm_before\.", r"backbone.layers.\1.blocks.\2.norm1."),
    (BLOCK + r"layernorm_after\.", r"backbone.layers.\1.blocks.\2.norm2."),
    (
        BLOCK + r"attention\.self\.relative_position_bias_table",
        r"backbone.layers.\1.blocks.\2.attn.relative_position_bias_table",
    ),
    (BLOCK + r"attention\.output\.dense\.", r"backbone.layers.\1.blocks.\2.attn.proj."),
    (BLOCK + r"intermediate\.dense\.", r"backbone.layers.\1.blocks.\2.mlp.fc1."),
    (BLOCK + r"output\.dense\.", r"backbone.layers.\1.blocks.\2.mlp.fc2."),
    (ENCODER + r"encoder\.layers\.(\d)\.downsample\.", r"backbone.layers.\1.downsample."),
    (
        ENCODER + r"hidden_states_norms\.stage(\d)\.",
        lambda m: f"backbone.norm{plus(m[1], -1)}.",
    ),
    (ENCODER + r"embedder\.embedder\.convolution\.", "backbone.stem.conv1."),
    (ENCODER + r"embedder\.embedder\.normalization\.", "backbone.stem.conv1.norm."),
    (
        STAGE + r"layer\.(\d)\.convolution\.",
        lambda m: f"backbone.res{plus(m[1], 2)}.{m[2]}.conv{plus(m[3], 1)}.",
    ),
    (
        STAGE + r"layer\.(\d)\.normalization\.",
        lambda m: f"backbone.res{plus(m[1], 2)}.{m[2]}.conv{plus(m[3], 1)}.norm.",
    ),
    (STAGE + r"shortcut\.convolution\.", lambda m: f"backbone.res{plus(m[1], 2)}.{m[2]}.shortcut."),
    (
        STAGE + r"shortcut\.normalization\.",
        lambda m: f"backbone.res{plus(m[1], 2)}.{m[2]}.shortcut.norm.",
    ),
    (PIXEL + r"(adapter|layer)_(\d)\.0\.", HEAD + r"\1_\2."),
    (PIXEL + r"(adapter|layer)_(\d)\.1\.", HEAD + r"\1_\2.norm."),
    (PIXEL + r"input_projections\.(\d)\.(\d)\.", HEAD + r"input_proj.\1.\2."),
    (PIXEL + r"level_embed", HEAD + "transformer.level_embed"),
    (
        PIXEL + r"encoder\.layers\.(\d+)\.self_attn\.",
        HEAD + r"transformer.encoder.layers.\1.self_attn.",
    ),
    (
        PIXEL + r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.",
        HEAD + r"transformer.encoder.layers.\1.norm1.",
    ),
    (
        PIXEL + r"encoder\.layers\.(\d+)\.fc(\d)\.",
        HEAD + r"transformer.encoder.layers.\1.linear\2.",
    ),
    (
        PIXEL + r"encoder\.layers\.(\d+)\.final_layer_norm\.",
        HEAD + r"transformer.encoder.layers.\1.norm2.",
    ),
    (PIXEL + r"mask_projection\.", HEAD + "mask_features."),
    (r"model\.transformer_module\.queries_embedder\.", PREDICTOR + "query_embed."),
    (r"model\.transformer_module\.queries_features\.", PREDICTOR + "query_feat."),
    (r"model\.transformer_module\.level_embed\.", PREDICTOR + "level_embed."),
    (r"model\.transformer_module\.input_projections\.(\d)\.", PREDICTOR + r"input_proj.\1."),
    (LAYER + r"cross_attn\.", PREDICTOR + r"transformer_cross_attention_layers.\1.multihead_attn."),
    (
        LAYER + r"cross_attn_layer_norm\.",
        PREDICTOR + r"transformer_cross_attention_layers.\1.norm.",
    ),
    (
        LAYER + r"self_attn\.out_proj\.",
        PREDICTOR + r"transformer_self_attention_layers.\1.self_attn.out_proj.",
    ),
    (LAYER + r"self_attn_layer_norm\.", PREDICTOR + r"transformer_self_attention_layers.\1.norm."),
    (LAYER + r"fc(\d)\.", PREDICTOR + r"transformer_ffn_layers.\1.linear\2."),
    (LAYER + r"final_layer_norm\.", PREDICTOR + r"transformer_ffn_layers.\1.norm."),
    (r"model\.transformer_module\.decoder\.layernorm\.", PREDICTOR + "decoder_norm."),
    (
        r"model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.",
        PREDICTOR + r"mask_embed.layers.\1.",
    ),
    (r"class_predictor\.", PREDICTOR + "class_embed."),
    (r"criterion\.", "criterion."),
]


def originals(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The paper's state dict of a transformers state dict."""
    original = {}
    for name, tensor in theirs.items():
        if name.startswith("model.pixel_level_module.encoder.swin.layernorm"):
            continue  # unused, and not in the paper's code
        query = re.fullmatch(BLOCK + r"attention\.self\.query\.(\w+)", name)
        if query:
            parts = [theirs[name.replace("query", part)] for part in ("query", "key", "value")]
            stage, block, kind = query.groups()
            original[f"backbone.layers.{stage}.blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
            continue
        query = re.fullmatch(LAYER + r"self_attn\.q_proj\.(\w+)", name)
        if query:
            parts = [
                theirs[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")
            ]
            layer = f"{PREDICTOR}transformer_self_attention_layers.{query[1]}.self_attn."
            original[f"{layer}in_proj_{query[2]}"] = torch.cat(parts)
            continue
        if re.search(r"self\.(key|value)\.|\.[kv]_proj\.", name):
            continue  # with the query
        matches = [(p, new) for p, new in RENAMED if re.match(p, name)]
        assert len(matches) == 1, name
        original[re.sub(*matches[0], name, count=1)] = tensor
    return original


@pytest.fixture(params=KINDS)
def model(request):
    return randomise(KINDS[request.param](), seed=1)


def state_of(model) -> dict[str, torch.Tensor]:
    """The paper's names for this model's parameters and buffers."""
    return originals(to_huggingface(model.state_dict(), model.config))


def write_pkl(path, state, wrap=True):
    arrays = OrderedDict((name, tensor.numpy()) for name, tensor in state.items())
    contents = {"model": arrays, "__author__": "third_party"} if wrap else arrays
    path.write_bytes(pickle.dumps(contents, 2))
    return path


def converted(path):
    """Our state dict, and the configuration, from a file of the paper's code."""
    weights = read_detectron2(path)
    config, _ = infer_config(weights, path)
    model = Mask2FormerForUniversalSegmentation(config)
    return from_detectron2(weights, model.state_dict(), config, path), config


def test_every_parameter_arrives_where_the_independent_description_says(model, tmp_path):
    state, config = converted(write_pkl(tmp_path / "model_final.pkl", state_of(model)))
    expected = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    names = ("num_labels", "num_queries", "hidden_dim", "feature_size", "mask_feature_size")
    names += ("encoder_layers", "decoder_layers", "dim_feedforward", "encoder_feedforward_dim")
    names += ("num_attention_heads", "common_stride", "no_object_weight", "pre_norm")
    assert {n: getattr(config, n) for n in names} == {n: getattr(model.config, n) for n in names}
    found, given = config.backbone_config.to_dict(), model.config.backbone_config.to_dict()
    assert found | {"drop_path_rate": 0} == given | {"drop_path_rate": 0}


def test_names_of_every_kind_equal_the_papers_code(tmp_path):
    swin, resnet = state_of(tiny_model("swin")), state_of(KINDS["bottleneck"]())
    for name, shape in {
        "backbone.patch_embed.proj.weight": (8, 3, 4, 4),
        "backbone.layers.1.blocks.1.attn.relative_position_bias_table": (25, 2),
        "backbone.layers.0.blocks.0.attn.qkv.bias": (24,),
        "backbone.layers.2.downsample.reduction.weight": (64, 128),
        "backbone.norm3.weight": (64,),
        "sem_seg_head.pixel_decoder.adapter_1.norm.bias": (32,),
        "sem_seg_head.pixel_decoder.layer_1.weight": (32, 32, 3, 3),
        "sem_seg_head.pixel_decoder.input_proj.2.0.weight": (32, 16, 1, 1),
        "sem_seg_head.pixel_decoder.transformer.level_embed": (3, 32),
        "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.self_attn.value_proj.weight": (
            32,
            32,
        ),
        "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.linear1.weight": (32, 32),
        "sem_seg_head.predictor.query_feat.weight": (6, 32),
        "sem_seg_head.predictor.level_embed.weight": (3, 32),
        PREDICTOR + "transformer_cross_attention_layers.2.multihead_attn.in_proj_weight": (96, 32),
        "sem_seg_head.predictor.transformer_self_attention_layers.0.self_attn.in_proj_bias": (96,),
        "sem_seg_head.predictor.transformer_ffn_layers.1.linear2.bias": (32,),
        "sem_seg_head.predictor.class_embed.weight": (4, 32),
        "sem_seg_head.predictor.mask_embed.layers.2.weight": (32, 32),
        "criterion.empty_weight": (4,),
    }.items():
        assert swin.pop(name).shape == shape, name
    for name, shape in {
        "backbone.stem.conv1.weight": (8, 3, 7, 7),
        "backbone.stem.conv1.norm.running_var": (8,),
        "backbone.res2.0.shortcut.weight": (16, 8, 1, 1),
        "backbone.res2.0.shortcut.norm.running_mean": (16,),
        "backbone.res3.1.conv2.weight": (8, 8, 3, 3),
        "backbone.res5.0.conv3.norm.weight": (64,),
    }.items():
        assert resnet.pop(name).shape == shape, name


@torch.no_grad()
def test_attention_of_the_paper_s_code_is_torch_s(tmp_path):
    """nn.MultiheadAttention with the file's tensors computes what the decoder's layer does."""
    model = randomise(tiny_model(), seed=2).double()
    original = state_of(model)
    theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True, dtype=torch.float64)
    prefix = PREDICTOR + "transformer_cross_attention_layers.1.multihead_attn."
    theirs.load_state_dict({n: original[prefix + n] for n in theirs.state_dict()})
    generator = torch.Generator().manual_seed(3)
    x, memory, position = (
        torch.rand(2, n, 32, generator=generator, dtype=torch.float64) for n in (6, 20, 20)
    )
    ours = model.model.transformer_decoder.layers[1].cross_attn(x, memory + position, memory)
    expected = theirs(x, memory + position, memory, need_weights=False)[0]
    assert relative_error(ours, expected) < 1e-14  # measured: 0


def test_frozen_batch_norm_has_no_counters_and_stays_frozen(tmp_path):
    model = KINDS["bottleneck"]()
    state = {n: t for n, t in state_of(model).items() if not n.endswith("num_batches_tracked")}
    loaded, config = converted(write_pkl(tmp_path / "a.pkl", state))
    assert loaded.keys() == model.state_dict().keys()
    assert config.backbone_config.freeze_batch_norm_2d


@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_files_of_torch_are_read(tmp_path, key):
    state = state_of(tiny_model("swin"))
    contents = {key: state, "iteration": 9, "optimizer": {"state": {}}} if key else state
    torch.save(contents, tmp_path / "model_0009999.pth")
    found = read_detectron2(tmp_path / "model_0009999.pth")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_numbers_of_numpy_in_a_file_of_torch_are_read(tmp_path):
    state = state_of(tiny_model("swin"))
    contents = {
        "model": {name: tensor.numpy() for name, tensor in state.items()},
        "optimizer": {"param_groups": [{"lr": np.float64(1e-4)}]},
    }
    torch.save(contents, tmp_path / "model_0009999.pth")
    found = read_detectron2(tmp_path / "model_0009999.pth")
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_pickle_without_a_model_entry_is_read(tmp_path):
    state = state_of(tiny_model("swin"))
    assert read_detectron2(write_pkl(tmp_path / "a.pkl", state, wrap=False)).keys() == state.keys()


def test_names_of_older_versions_are_brought_up_to_date(tmp_path):
    state = state_of(tiny_model("swin"))
    old = {
        name.replace("pixel_decoder.", "").replace("query_feat", "static_query"): tensor
        for name, tensor in state.items()
    }
    assert old.keys() & state.keys() != old.keys()
    assert read_detectron2(write_pkl(tmp_path / "a.pkl", old)).keys() == state.keys()


def test_buffers_that_follow_from_the_configuration_are_ignored(tmp_path):
    model = tiny_model("swin")
    extra = {
        "backbone.layers.0.blocks.0.attn.relative_position_index": torch.zeros(9, 9),
        "pixel_mean": torch.zeros(3, 1, 1),
    }
    loaded, _ = converted(write_pkl(tmp_path / "a.pkl", state_of(model) | extra))
    assert loaded.keys() == model.state_dict().keys()


def test_what_the_file_does_not_say_is_reported():
    config, assumed = infer_config(state_of(tiny_model("swin")), "a.pkl")
    assert assumed == [
        *("pre_norm", "activation_function", "dropout", "class_weight", "mask_weight"),
        *("dice_weight", "backbone_config.hidden_act", "backbone_config.drop_path_rate"),
    ]
    assert config.backbone_config.drop_path_rate == 0.3
    state = state_of(tiny_model(encoder_layers=0))
    del state["criterion.empty_weight"]
    _, assumed = infer_config(state, "a.pkl")
    assert {"num_attention_heads", "no_object_weight"} < set(assumed)
    assert "backbone_config.downsample_in_bottleneck" in assumed


@pytest.mark.parametrize(
    ("dim", "depths", "heads", "window"),
    [
        (96, [2, 2, 6, 2], [3, 6, 12, 24], 7),
        (96, [2, 2, 18, 2], [3, 6, 12, 24], 7),
        (128, [2, 2, 18, 2], [4, 8, 16, 32], 12),
        (192, [2, 2, 18, 2], [6, 12, 24, 48], 12),
    ],
)
def test_the_paper_s_swins_are_recognised(dim, depths, heads, window):
    state = state_of(tiny_model("swin"))
    state = {name: tensor for name, tensor in state.items() if not name.startswith("backbone.")}
    state["backbone.patch_embed.proj.weight"] = torch.empty(dim, 3, 4, 4, device="meta")
    for stage, (depth, number) in enumerate(zip(depths, heads, strict=True)):
        for block in range(depth):
            prefix = f"backbone.layers.{stage}.blocks.{block}."
            table = torch.empty((2 * window - 1) ** 2, number, device="meta")
            state[prefix + "attn.relative_position_bias_table"] = table
            state[prefix + "attn.qkv.bias"] = torch.empty(3, device="meta")
            width = dim * 2**stage
            state[prefix + "mlp.fc1.weight"] = torch.empty(4 * width, width, device="meta")
    backbone = infer_config(state, "a.pkl")[0].backbone_config
    assert (backbone.embed_dim, backbone.depths) == (dim, depths)
    assert (backbone.num_heads, backbone.window_size) == (heads, window)
    assert (backbone.mlp_ratio, backbone.patch_size, backbone.qkv_bias) == (4.0, 4, True)


def test_a_missing_tensor_is_named(tmp_path):
    state = state_of(tiny_model("swin"))
    del state["backbone.layers.1.blocks.1.attn.proj.bias"]
    path = write_pkl(tmp_path / "a.pkl", state)
    message = (
        r"a\.pkl misses 1 key\(s\), such as 'backbone\.layers\.1\.blocks\.1\.attn\.proj\.bias'"
    )
    with pytest.raises(DataError, match=message):
        converted(path)


def test_a_foreign_tensor_is_named(tmp_path):
    state = state_of(tiny_model("swin")) | {"backbone.absolute_pos_embed": torch.zeros(1)}
    with pytest.raises(DataError, match=r"has foreign 1 key\(s\), such as 'backbone\.absolute_pos"):
        converted(write_pkl(tmp_path / "a.pkl", state))


def test_a_tensor_of_another_shape_is_named(tmp_path):
    state = state_of(tiny_model("swin"))
    state["backbone.norm2.bias"] = torch.zeros(5)
    with pytest.raises(
        DataError, match=r"backbone\.norm2\.bias has shape \(5,\) instead of \(32,\); give a file"
    ):
        converted(write_pkl(tmp_path / "a.pkl", state))


@pytest.mark.parametrize(
    "state",
    [
        {"stem.conv1.weight": torch.zeros(64, 3, 7, 7)},
        {"backbone.patch_embed.proj.weight": torch.zeros(0, 3, 4, 4)},
        {"model.pixel_level_module.decoder.level_embed": torch.zeros(3, 32)},
    ],
)
def test_tensors_of_another_model_are_refused(tmp_path, state):
    with pytest.raises(DataError, match="a.pkl has no .* of the paper's code; give a file of"):
        converted(write_pkl(tmp_path / "a.pkl", state))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([np.zeros(3)], "is a list instead of"),
        ({"model": {"a": 3}}, "entry 'a' of type int"),
        ({"model": {3: np.zeros(3)}}, "entry 3 of type Tensor"),
    ],
)
def test_a_pickle_without_named_arrays_is_refused(tmp_path, contents, message):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(contents, 2))
    with pytest.raises(DataError, match=message):
        read_detectron2(tmp_path / "a.pkl")


@pytest.mark.parametrize("name", ["a.pkl", "a.pth"])
def test_a_file_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(DataError, match=rf"{name} cannot be read \(No such file"):
        read_detectron2(tmp_path / name)
