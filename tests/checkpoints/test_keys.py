from pathlib import Path

import pytest
import torch

from mask2former import DataError
from mask2former.checkpoints.keys import load_state, reverse, translate

TABLE = [
    ("a.*.qkv.*", ("x.*.q.*", "x.*.k.*", "x.*.v.*")),
    (("b.*.query.*", "b.*.key.*"), "y.*.in_proj_*"),
    ("c.*", "z.*"),
]


def weights():
    generator = torch.Generator().manual_seed(0)
    names = ["x.0.q.weight", "x.0.k.weight", "x.0.v.weight", "y.3.in_proj_bias", "z.weight"]
    return {name: torch.rand(4, generator=generator) for name in names}


def test_parts_are_joined_and_split_and_the_way_back_restores_them():
    theirs = weights()
    ours, rest = translate(theirs, reverse(TABLE))
    assert not rest
    assert set(ours) == {"a.0.qkv.weight", "b.3.query.bias", "b.3.key.bias", "c.weight"}
    joined = [theirs[f"x.0.{part}.weight"] for part in "qkv"]
    assert torch.equal(ours["a.0.qkv.weight"], torch.cat(joined))
    assert torch.equal(ours["b.3.key.bias"], theirs["y.3.in_proj_bias"][2:])
    back, rest = translate(ours, TABLE)
    assert not rest
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


def test_names_without_a_rule_are_reported():
    _, rest = translate({"z.weight": torch.zeros(1), "q.w": torch.zeros(1)}, reverse(TABLE))
    assert rest == ["q.w"]


def test_a_group_with_a_missing_part_is_left_over():
    theirs = weights()
    del theirs["x.0.k.weight"]
    ours, rest = translate(theirs, reverse(TABLE))
    assert rest == ["x.0.q.weight", "x.0.v.weight"]
    assert "a.0.qkv.weight" not in ours


def test_a_star_does_not_cross_a_dot():
    _, rest = translate({"z.deep.weight": torch.zeros(1)}, reverse(TABLE))
    assert rest == ["z.deep.weight"]


def test_counters_of_batch_norms_may_be_missing_or_too_many():
    rules = [("n.*", "m.*")]
    path = Path("file")
    counted = {"n.num_batches_tracked": torch.tensor(5), "n.weight": torch.ones(2)}
    state = load_state({"m.weight": torch.ones(2)}, rules, counted, path, ("", ""))
    assert state["n.num_batches_tracked"] == 0
    theirs = {"m.weight": torch.ones(2), "m.num_batches_tracked": torch.tensor(7)}
    assert load_state(theirs, rules, counted, path, ("", ""))["n.num_batches_tracked"] == 7
    del counted["n.num_batches_tracked"]
    assert list(load_state(theirs, rules, counted, path, ("", ""))) == ["n.weight"]


def test_many_misfits_are_counted():
    rules = [("n.*", "m.*")]
    expected = {f"n.{index}": torch.zeros(2) for index in range(12)}
    theirs = {f"m.{index}": torch.zeros(3) for index in range(12)}
    with pytest.raises(DataError, match=r"m\.7 has shape \(3,\) instead of \(2,\), and 4 more;"):
        load_state(theirs, rules, expected, Path("file"), ("", ""))


def test_a_shape_that_cannot_be_split_is_a_misfit():
    rules = [(("a.*", "b.*", "c.*"), "m.*")]
    expected = {f"{part}.w": torch.zeros(2) for part in "abc"}
    for shape in ((4,), ()):
        with pytest.raises(DataError, match=r"m\.w has shape .* instead of \(6,\)"):
            load_state({"m.w": torch.zeros(shape)}, rules, expected, Path("file"), ("", ""))
    with pytest.warns(UserWarning, match="1 parameter"):
        state = load_state({"m.w": torch.zeros(4)}, rules, expected, Path("file"), ("", ""), True)
    assert state == {}


def test_two_stars_stand_for_any_number_of_parts():
    theirs = {"z.weight": torch.zeros(1), "z.deep.er.weight": torch.ones(1)}
    ours, rest = translate(theirs, [("z.**", "c.body.**")])
    assert not rest
    names = {"c.body.weight": "z.weight", "c.body.deep.er.weight": "z.deep.er.weight"}
    assert ours.keys() == names.keys()
    assert all(ours[name] is theirs[their_name] for name, their_name in names.items())
