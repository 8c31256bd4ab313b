import torch

from mask2former.checkpoints.keys import reverse, translate

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


def test_two_stars_stand_for_any_number_of_parts():
    theirs = {"z.weight": torch.zeros(1), "z.deep.er.weight": torch.ones(1)}
    ours, rest = translate(theirs, [("z.**", "c.body.**")])
    assert not rest
    names = {"c.body.weight": "z.weight", "c.body.deep.er.weight": "z.deep.er.weight"}
    assert ours.keys() == names.keys()
    assert all(ours[name] is theirs[their_name] for name, their_name in names.items())
