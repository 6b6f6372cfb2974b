"""The functional student stack against `transformers` and torch."""

import json

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from kd_gym.backend import optim
from kd_gym.backend.checkpoint import StudentInit, load_bert
from kd_gym.backend.encoder import Architecture, encode, forward_flops, parameter_shapes
from kd_gym.backend.layout import ALIGNED, Layout
from kd_gym.backend.optim import UNDECAYED, AdamWState, decays, gradient_norms
from kd_gym.backend.teacher import word_states
from kd_gym.backend.tiny import tiny_data, tiny_init, tiny_tokenizer

PAIR, SINGLE = "MNLI", "SST2"


def stack(init: StudentInit, seeds, dtype=torch.float32):
    drawn = [init.draw(seed) for seed in seeds]
    return {name: torch.stack([d[name] for d in drawn]).to(dtype) for name in drawn[0]}


@pytest.mark.parametrize("task", [SINGLE, PAIR])
def test_exported_student_has_the_logits_of_transformers(task, tmp_path):
    data = tiny_data(task)
    init = tiny_init(data)
    params = stack(init, [3, 4])
    tokens, _ = data.split("reward").batches(16)[0]
    init.export(params, 1, tmp_path, data.tokenizer, data.task.labels)

    model = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = data.vocabulary[tokens.ids[0]]
    with torch.no_grad():
        expected = model(input_ids=ids, token_type_ids=tokens.types[0], attention_mask=tokens.mask[0].long()).logits
    found = encode(params, init.arch, tokens).logits[1]
    assert torch.allclose(found, expected, atol=1e-5, rtol=0)
    assert model.config.id2label == dict(enumerate(data.task.labels))
    texts = data.rows["reward"].texts[0]
    assert AutoTokenizer.from_pretrained(tmp_path)(*texts)["input_ids"] == data.tokenizer(*texts)["input_ids"]


def bert_folder(tmp_path, layers=4, hidden=32):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tiny_tokenizer()),
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        max_position_embeddings=64,
        num_labels=2,
    )
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    return model


def test_loaded_checkpoint_has_the_logits_and_cls_states_of_transformers(tmp_path):
    model = bert_folder(tmp_path)
    arch, params = load_bert(tmp_path)
    data = tiny_data(SINGLE)
    tokens, _ = data.split("reward").batches(16)[0]
    full = tokens._replace(ids=data.vocabulary[tokens.ids])
    with torch.no_grad():
        expected = model(input_ids=full.ids[0], attention_mask=full.mask[0].long(), output_hidden_states=True)
    found = encode({k: v[None] for k, v in params.items()}, arch, full)
    assert torch.allclose(found.logits[0], expected.logits, atol=1e-5, rtol=0)
    states = torch.stack([h[:, 0] for h in expected.hidden_states[1:]])
    assert torch.allclose(found.cls[0], states, atol=1e-5, rtol=0)


def test_student_as_wide_as_its_teacher_takes_its_layers_and_a_narrow_one_its_projected_word_states(tmp_path):
    model = bert_folder(tmp_path)
    vocabulary = torch.arange(0, len(tiny_tokenizer()), 2)
    _, teacher = load_bert(tmp_path)
    wide = StudentInit.of(tmp_path, Architecture(2, 32, 4, 64, 0, 2), vocabulary, lambda: torch.empty(0)).draw(0)
    assert torch.equal(wide["0.kv.weight"], teacher["1.kv.weight"])
    assert torch.equal(wide["1.up.bias"], teacher["3.up.bias"])
    assert torch.equal(wide["word"], teacher["word"][vocabulary])

    states = word_states(tmp_path, tiny_tokenizer(), torch.device("cpu"))
    alone = torch.tensor([[2, 9, 3]])  # [CLS] piece [SEP]
    expected = model(alone, output_hidden_states=True).hidden_states[2][0, 1]
    assert torch.allclose(states[9], expected, atol=1e-5)
    narrow = StudentInit.of(tmp_path, Architecture(2, 16, 2, 32, 0, 2), vocabulary, lambda: states)
    kept = narrow.draw(0)["word"] - narrow.draw(0)["word"].mean(0)
    singular = torch.linalg.svdvals(states[vocabulary] - states[vocabulary].mean(0))[:16]
    ratio = torch.linalg.svdvals(kept) / singular  # no projection to 16 directions keeps more
    assert torch.allclose(ratio, ratio[0].expand(16), rtol=1e-3)
    assert torch.equal(narrow.draw(7)["0.up.weight"], narrow.draw(7)["0.up.weight"])
    assert not torch.equal(narrow.draw(7)["0.up.weight"], narrow.draw(8)["0.up.weight"])


def test_fused_and_plain_attention_are_equal():
    data = tiny_data(PAIR)
    init = tiny_init(data)
    params = stack(init, [0, 1], torch.float64)
    tokens, _ = data.split("reward").batches(16)[0]
    fused, plain = (encode(params, init.arch, tokens, kind) for kind in ("fused", "plain"))
    assert torch.allclose(fused.logits, plain.logits, atol=1e-10)


def test_padding_changes_nothing():
    data = tiny_data(SINGLE)
    init = tiny_init(data)
    params = stack(init, [0], torch.float64)
    rows = torch.arange(6)[None]
    train = data.split("train")
    short = encode(params, init.arch, train.batch(rows)).logits
    padded = encode(params, init.arch, train.batch(rows, 40)).logits
    assert torch.allclose(short, padded, atol=1e-12)


@pytest.mark.parametrize("step", [optim._one_by_one, optim._together])
def test_adamw_is_torchs_at_one_student_and_each_of_many_is_alone(step):
    shapes = {"a.weight": (5, 3), "a.bias": (5,), "word": (7, 3)}
    random = torch.Generator().manual_seed(0)
    start = {k: torch.randn(3, *s, generator=random) for k, s in shapes.items()}
    rates, clip, decay = torch.tensor([1e-2, 3e-3, 0.0]), 1.0, 0.1
    ours = {k: v.clone() for k, v in start.items()}
    state = AdamWState.zeros(ours)
    theirs = []
    for n in range(3):
        params = {k: v[n].clone().requires_grad_() for k, v in start.items()}
        groups = [
            {"params": [p], "weight_decay": 0.0 if any(u in k for u in UNDECAYED) else decay} for k, p in params.items()
        ]
        theirs.append((params, torch.optim.AdamW(groups, lr=float(rates[n]))))
    for _ in range(12):
        gradients = {k: torch.randn(v.mT.shape, generator=random).mT * 2 for k, v in ours.items()}  # other strides
        norms = gradient_norms(gradients)
        step(ours, gradients, state, rates, norms, clip, decay)
        for n, (params, optimiser) in enumerate(theirs):
            for k, p in params.items():
                p.grad = gradients[k][n].clone()
            torch.nn.utils.clip_grad_norm_(list(params.values()), clip)
            optimiser.step()
    for n, (params, _) in enumerate(theirs):
        for k, p in params.items():
            assert torch.allclose(ours[k][n], p, atol=1e-6), (n, k)
    assert state.step.tolist() == [12, 12, 12]
    before = [{k: v.clone() for k, v in group.items()} for group in (ours, state.mean, state.square)]
    norms[1] = torch.nan
    gradients["word"][1] = torch.inf
    step(ours, gradients, state, rates, norms, clip, decay)
    assert state.step.tolist() == [13, 12, 13]
    for group, old in zip((ours, state.mean, state.square), before, strict=True):
        assert all(torch.equal(group[k][1], old[k][1]) and not torch.equal(group[k][0], old[k][0]) for k in old)


def test_flop_count_is_that_of_torchs_counter():
    from torch.utils.flop_counter import FlopCounterMode

    data = tiny_data(SINGLE)
    init = tiny_init(data)
    tokens = data.split("train").batch(torch.arange(8)[None], 14)
    with FlopCounterMode(display=False) as counter:
        encode(stack(init, [0]), init.arch, tokens, "plain")
    assert counter.get_total_flops() == forward_flops(init.arch, 8, 14)


def test_config_of_an_export_is_complete_json(tmp_path):
    data = tiny_data(SINGLE)
    init = tiny_init(data)
    init.export(stack(init, [0]), 0, tmp_path, data.tokenizer, data.task.labels)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vocab_size"] == len(tiny_tokenizer())
    assert set(parameter_shapes(init.arch)) == set(load_bert(tmp_path)[1])


def test_parameters_are_views_of_long_tensors_with_nothing_between_them():
    shapes = parameter_shapes(Architecture(2, 8, 2, 16, 11, 3)) | {"head.feature.0.weight": (8, 5)}
    layout = Layout(shapes, long=100)
    assert layout.alone == [
        "word",
        "position",
        "0.kv.weight",
        "0.up.weight",
        "0.down.weight",
        "1.kv.weight",
        "1.up.weight",
        "1.down.weight",
    ]
    packed = layout.zeros(2, torch.float64, torch.device("cpu"))
    views = layout.views(packed)
    assert {name: tuple(view.shape[1:]) for name, view in views.items()} == shapes
    assert list(views) == list(shapes)
    values = {name: torch.randn_like(view) for name, view in views.items()}
    gathered = layout.pack(values, {name: packed[name] for name in ("matrices", "biases", "word")})
    assert all(torch.equal(views[name], value) for name, value in values.items() if name not in layout.alone)
    assert all(gathered[name] is values[name] for name in layout.alone if name != "word")
    assert gathered["word"] is packed["word"]  # whose gradient is written by rows
    for group, decayed in (("matrices", True), ("biases", False)):
        names = [name for name in shapes if name not in layout.alone and decays(name) is decayed]
        assert decays(group) is decayed
        assert packed[group].shape[1] % ALIGNED == 0
        assert packed[group].count_nonzero() == sum(values[name].numel() for name in names)
