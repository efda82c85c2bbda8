"""The partition into skill units and its two directions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kifuse.knowledge import SkillUnits
from tests.reference import units as reference

PREFIX = "base_model.model."
T5 = {
    f"{PREFIX}encoder.block.0.layer.0.SelfAttention.q.lora_A.default.weight": (2, 5),
    f"{PREFIX}encoder.block.0.layer.0.SelfAttention.q.lora_B.default.weight": (4, 2),
    f"{PREFIX}encoder.block.0.layer.0.SelfAttention.v.lora_A.default.weight": (2, 5),
    f"{PREFIX}encoder.block.0.layer.0.SelfAttention.v.lora_B.default.weight": (3, 2),
    f"{PREFIX}decoder.block.0.layer.0.SelfAttention.q.lora_A.default.weight": (2, 5),
    f"{PREFIX}decoder.block.0.layer.0.SelfAttention.q.lora_B.default.weight": (4, 2),
    f"{PREFIX}shared.bias": (6,),
}
LEVELS = ["matrix", "rank", "element", "module", "layer"]
Q, V, DQ = (
    "encoder.block.0.layer.0.SelfAttention.q",
    "encoder.block.0.layer.0.SelfAttention.v",
    "decoder.block.0.layer.0.SelfAttention.q",
)


def _build(level, shapes=T5):
    return SkillUnits.build(list(shapes), list(shapes.values()), level)


def _scores(shapes=T5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=generator) for shape in shapes.values()]


def _reference_units(level):
    names = list(T5)
    if level == "matrix":
        return reference.matrix_units(T5)
    if level == "element":
        return [[scalar] for unit in reference.matrix_units(T5) for scalar in unit]
    if level == "rank":
        pairs = [(names[i], names[i + 1]) for i in (0, 2, 4)]
        ranks = [u for a, b in pairs for u in reference.rank_units(a, T5[a], b, T5[b])]
        return ranks + reference.joined(T5, [names[6:]])
    groups = {"module": [names[0:2], names[2:4], names[4:6], names[6:]]}
    groups["layer"] = [names[0:4], names[4:6], names[6:]]
    return reference.joined(T5, groups[level])


@pytest.mark.parametrize("level", LEVELS)
def test_mean_importance_and_sizes_match_the_units_written_out(level):
    units, scores = _build(level), _scores()
    expected = _reference_units(level)
    assert units.count == len(expected) == len(units.labels)
    assert units.sizes.tolist() == [len(unit) for unit in expected]
    values = units.reduce(scores)
    assert values.dtype == torch.float32
    wanted = torch.tensor(reference.mean_importance(dict(zip(T5, scores, strict=True)), expected))
    torch.testing.assert_close(values, wanted, rtol=1e-6, atol=0)


def test_rank_outer_is_the_mean_of_the_outer_product():
    units, scores = _build("rank"), _scores()
    expected = [v for i in (0, 2, 4) for v in reference.outer_importance(scores[i], scores[i + 1])]
    expected.append(float(scores[6].mean()))  # outside any pair: its mean
    torch.testing.assert_close(units.reduce(scores, "outer"), torch.tensor(expected), rtol=1e-6, atol=0)


def test_rank_outer_never_builds_the_full_matrix():
    wide = 2_000_000  # an in x out matrix would be 4e12 scalars
    units = SkillUnits.build(["q.lora_A.weight", "q.lora_B.weight"], [(1, wide), (wide, 1)], "rank")
    scores = [torch.full((1, wide), 0.5), torch.full((wide, 1), 0.25)]
    assert units.reduce(scores, "outer").tolist() == [0.125]


@pytest.mark.parametrize("level", LEVELS)
def test_expand_gives_every_scalar_its_unit_and_every_unit_its_scalars(level):
    units = _build(level)
    values = torch.arange(units.count, dtype=torch.float32)
    expanded = units.expand(values)
    full = {name: e.expand(T5[name]) for name, e in zip(T5, expanded, strict=True)}
    for number, unit in enumerate(_reference_units(level)):
        assert {float(full[name][index]) for name, index in unit} == {float(number)}


@settings(max_examples=25, deadline=None)
@given(level=st.sampled_from(LEVELS), seed=st.integers(0, 1000))
def test_reducing_expanded_values_returns_them(level, seed):
    units = _build(level)
    values = torch.rand(units.count, generator=torch.Generator().manual_seed(seed))
    full = [e.expand(shape) for e, shape in zip(units.expand(values), T5.values(), strict=True)]
    torch.testing.assert_close(units.reduce(full), values, rtol=1e-6, atol=0)


def test_expanded_shapes_broadcast_without_being_materialised():
    units = _build("rank")
    a, b, *_, bias = units.expand(torch.rand(units.count))
    assert (a.shape, b.shape, bias.shape) == ((2, 1), (1, 2), ())
    assert all(e.shape == () for e in _build("matrix").expand(torch.rand(7)))


@pytest.mark.parametrize("level", LEVELS)
def test_permuting_the_parameters_permutes_the_units(level):
    order = [4, 6, 1, 0, 2, 5, 3]
    names = [list(T5)[i] for i in order]
    shuffled = SkillUnits.build(names, [T5[n] for n in names], level)
    scores, units = _scores(), _build(level)
    before = dict(zip(units.labels, units.reduce(scores).tolist(), strict=True))
    after = dict(zip(shuffled.labels, shuffled.reduce([scores[i] for i in order]).tolist(), strict=True))
    assert after == pytest.approx(before, rel=1e-6)


def test_labels_name_the_place_in_the_model():
    assert _build("matrix").labels[:2] == [f"{Q}.lora_A", f"{Q}.lora_B"]
    assert _build("rank").labels == [f"{m}[{i}]" for m in (Q, V, DQ) for i in (0, 1)] + ["shared.bias"]
    assert _build("module").labels == [Q, V, DQ, "shared"]
    assert _build("layer").labels == ["encoder.block.0", "decoder.block.0", "shared.bias"]
    assert _build("element").labels[10] == f"{Q}.lora_B[0]"


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("model.layers.11.mlp.up_proj.weight", "model.layers.11"),
        ("transformer.h.3.attn.c_attn.weight", "transformer.h.3"),
        ("decoder.block.2.layer.1.EncDecAttention.q.weight", "decoder.block.2"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
    ],
)
def test_layer_names_of_the_usual_architectures(name, label):
    assert SkillUnits.build([name], [(2, 2)], "layer").labels == [label]


def test_adapters_and_layers_with_the_same_ending_stay_apart():
    names = [f"layers.{n}.q.lora_{s}.{a}.weight" for n in (1, 10) for a in ("x", "y") for s in "AB"]
    units = SkillUnits.build(names, [(1, 3), (3, 1)] * 4, "rank")
    assert units.count == 4 and len(set(units.labels)) == 4


def test_a_lora_tensor_without_a_trainable_partner_is_one_unit():
    units = SkillUnits.build(["q.lora_B.default.weight", "q.bias"], [(4, 2), (4,)], "rank")
    assert units.count == 2
    assert [e.shape for e in units.expand(torch.rand(2))] == [(), ()]
    assert units.reduce([torch.ones(4, 2), torch.ones(4)], "outer").tolist() == [1.0, 1.0]


def test_convolution_and_embedding_adapters_pair_too():
    shapes = {
        "conv.lora_A.default.weight": (2, 3, 3, 3),
        "conv.lora_B.default.weight": (5, 2, 1, 1),
        "emb.lora_embedding_A.default": (2, 9),
        "emb.lora_embedding_B.default": (4, 2),
    }
    units = _build("rank", shapes)
    assert units.sizes.tolist() == [32, 32, 13, 13]
    assert [tuple(e.shape) for e in units.expand(torch.rand(4))] == [
        (2, 1, 1, 1),
        (1, 2, 1, 1),
        (2, 1),
        (1, 2),
    ]
    torch.testing.assert_close(units.reduce([torch.ones(s) for s in shapes.values()], "outer"), torch.ones(4))


def test_dora_magnitudes_and_biases_belong_to_the_linear_layer():
    names = ["l.q.lora_A.default.weight", "l.q.lora_magnitude_vector.default.weight", "l.q.base_layer.bias"]
    assert SkillUnits.build(names, [(2, 3), (4,), (4,)], "module").labels == ["l.q"]


def test_half_precision_scores_are_summed_in_float32():
    units = SkillUnits.build(["w"], [(4096, 3)], "matrix")
    assert units.reduce([torch.ones(4096, 3, dtype=torch.float16)]).tolist() == [1.0]


@pytest.mark.parametrize(
    ("names", "shapes", "level", "message"),
    [
        (["a"], [(2,)], "head", "level: found 'head'"),
        ([], [], "matrix", "at least one"),
        (["a", "a"], [(2,), (2,)], "matrix", "1 different"),
        (["a", "b"], [(2,)], "matrix", "1 shapes"),
        (["q.lora_A.weight", "q.lora_B.weight"], [(2, 3), (3, 4)], "rank", "2 ranks"),
    ],
)
def test_unusable_partitions_are_refused(names, shapes, level, message):
    with pytest.raises(ValueError, match=message):
        SkillUnits.build(names, shapes, level)


def test_values_that_do_not_fit_are_refused():
    units = _build("matrix")
    with pytest.raises(ValueError, match="expected 7"):
        units.reduce(_scores()[:3])
    with pytest.raises(ValueError, match="found scores of shape"):
        units.reduce([score.flatten() for score in _scores()])
    with pytest.raises(ValueError, match="expected 'mean' or 'outer'"):
        units.reduce(_scores(), "median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected \(7,\)"):
        units.expand(torch.rand(6))
