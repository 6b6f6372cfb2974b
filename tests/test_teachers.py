"""Teachers: what a recipe trains on what, and stores that say what `transformers` says of a single text."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLNetConfig,
)

from kd_gym import ENV_IDS, KDGymError
from kd_gym.backend.store import teacher_store
from kd_gym.backend.teacher import TeacherSpec, _labels, fine_tuned, load_teacher
from kd_gym.backend.tiny import _WORDS, _generate, tiny_data, tiny_tokenizer
from kd_gym.envs.lab import quiet
from kd_gym.experiments.setup import EnvSpec
from kd_gym.tasks.data import build_data
from kd_gym.tasks.domains import DOMAINS, lesson
from kd_gym.tasks.readers import Rows
from kd_gym.tasks.sources import Source
from kd_gym.tasks.task import TASKS
from kd_gym.tasks.tokens import TokenSplit

CPU = torch.device("cpu")
DATA = tiny_data("SST2")


def save_model(folder, config):
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    """A folder with a BERT of 4 layers and its tokenizer."""
    shape = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    tiny_tokenizer().save_pretrained(tmp_path / "bert")
    return save_model(
        tmp_path / "bert", BertConfig(vocab_size=len(tiny_tokenizer()), max_position_embeddings=64, **shape)
    )


def tuned(checkpoint, data=DATA, **recipe):
    spec = TeacherSpec("test", checkpoint=str(checkpoint), **{"updates": 5, **recipe})
    return fine_tuned(spec, checkpoint, data, CPU, quiet)


def weights(folder):
    return load_teacher(folder, CPU).state_dict()


# ---------------------------------------------------------------------- recipes


def test_a_teacher_of_fewer_layers_starts_from_the_lowest_ones(checkpoint):
    folder = tuned(checkpoint, layers=2, learning_rate=0.0)
    assert load_teacher(folder, CPU).config.num_hidden_layers == 2
    start, found = weights(checkpoint), weights(folder)
    assert not any(".layer.2." in name for name in found)
    assert all(torch.equal(value, start[name]) for name, value in found.items() if "classifier" not in name)
    assert teacher_store(folder, DATA, "reward", CPU, quiet).layers == 2


@pytest.mark.parametrize(("share", "epochs"), [(0.1, 12), (1.0, 3)])
def test_a_teacher_sees_its_share_of_the_rows_as_often_as_its_epochs_say(checkpoint, monkeypatch, share, epochs):
    seen, real = [], TokenSplit.batch
    monkeypatch.setattr(
        TokenSplit, "batch", lambda self, rows, width=None: (seen.append(rows), real(self, rows, width))[1]
    )
    folder = tuned(checkpoint, share=share, epochs=epochs, updates=1000)
    rows, count = torch.cat(seen), len(DATA.split("train"))
    assert len(seen) == round(epochs * share * count / 32)
    assert len(rows.unique()) == pytest.approx(share * count, rel=0.1)
    assert json.loads((folder.parent / "teacher.json").read_text())["updates"] == len(seen)


def test_wrong_labels_are_those_of_all_rows_or_of_long_ones_alone():
    train = DATA.split("train")
    long = train.length > train.length.median()
    everywhere, some = (_labels(TeacherSpec("t", label_noise=0.8, noise_on=on), train, 2) for on in ("all", "long"))
    assert (everywhere != train.labels).float().mean() == pytest.approx(0.8, abs=0.06)
    assert (some != train.labels)[long].float().mean() == pytest.approx(0.8, abs=0.08)
    assert torch.equal(some[~long], train.labels[~long])
    assert torch.equal(_labels(TeacherSpec("t"), train, 2), train.labels)


def test_early_and_final_are_two_moments_of_one_training(checkpoint, monkeypatch):
    final = tuned(checkpoint, updates=10)
    monkeypatch.setattr("kd_gym.backend.teacher._fine_tune", lambda *_: pytest.fail("trained twice"))
    early = tuned(checkpoint, updates=10, stage="early")
    assert (final.name, early.name, final.parent) == ("final", "early", early.parent)
    assert any(not torch.equal(value, weights(final)[name]) for name, value in weights(early).items())


def test_a_tuned_checkpoint_is_taken_as_it_is(checkpoint):
    assert tuned(checkpoint, epochs=0) == checkpoint
    before = weights(checkpoint)
    assert torch.equal(before["classifier.weight"], weights(tuned(checkpoint, epochs=0))["classifier.weight"])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a", "b", "c"], "has 3 classes, task SST2 has 2"),
        (
            ["Positive", "Negative"],
            "its classes in another order (Positive, Negative) than task SST2 (negative, positive)",
        ),
        (["NEGATIVE", "POSITIVE"], ""),
        (["LABEL_0", "LABEL_1"], ""),
        (None, "holds no checkpoint: its config.json cannot be read"),
    ],
)
def test_a_tuned_checkpoint_must_have_the_tasks_classes(checkpoint, labels, said):
    assert DATA.task.labels == ("negative", "positive")
    config = checkpoint / "config.json"
    about = json.loads(config.read_text())
    config.write_text(json.dumps({**about, "id2label": dict(enumerate(labels))}) if labels else "{")
    if not said:
        assert tuned(checkpoint, epochs=0) == checkpoint
        return
    with pytest.raises(KDGymError) as caught:
        tuned(checkpoint, epochs=0)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- domains


def test_rows_of_a_domain_in_which_a_held_out_text_stands_are_left_out(checkpoint, monkeypatch):
    held = [text for name in ("reward", "select", "report") for (text,) in DATA.rows[name].texts]
    long = next(text for text in held if len(text.split()) >= 4)
    short = next(text for text in held if len(text.split()) == 3)
    texts = [
        f"ban   {long.upper()} der",  # contained, whatever case and spaces
        long,
        short,  # equal
        f"mul {short} mul",  # so few words stand anywhere
        f"x{long}x",  # not as whole words
        DATA.rows["train"].texts[0][0],
        *[f"ban der kil lom mus {a} {b}" for a in _WORDS[:8] for b in _WORDS[:8]],
    ]
    monkeypatch.setitem(
        DOMAINS.builtin, "other", lambda: Rows([(text,) for text in texts], [i % 2 for i in range(len(texts))])
    )
    rows, vocabulary = lesson("other", DATA)
    kept = texts[3:]
    assert rows.labels.tolist() == [i % 2 for i in range(3, len(texts))]
    for i, text in enumerate(kept):
        tokens = rows.batch(torch.tensor([i]))
        assert vocabulary[tokens.ids[0]].tolist() == DATA.tokenizer(text)["input_ids"]
    folder = tuned(checkpoint, domain="other")
    assert folder != tuned(checkpoint)
    assert len(teacher_store(folder, DATA, "train", CPU, quiet).logits) == len(DATA.split("train"))


def test_a_domain_of_other_texts_or_labels_is_one_clear_line(checkpoint, monkeypatch):
    monkeypatch.setitem(DOMAINS.builtin, "pairs", lambda: Rows([("a", "b")], [0]))
    monkeypatch.setitem(DOMAINS.builtin, "stars", lambda: Rows([("a",)], [4]))
    for name in ("pairs", "stars"):
        with pytest.raises(KDGymError, match=f"domain '{name}' does not fit task SST2"):
            tuned(checkpoint, domain=name)
    with pytest.raises(KDGymError, match="did you mean 'imdb'"):
        tuned(checkpoint, domain="imbd")
    assert lesson("", DATA)[0] is DATA.split("train")


# ---------------------------------------------------------------------- other families of models

WIDTH = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 64}
WILD = {"initializer_range": 0.3}  # so that the last digits of an error in the inputs are far above rounding


def config_of(kind, size, classes):
    if kind == "roberta":
        shape = {**WIDTH, "max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1}
        return RobertaConfig(vocab_size=size, num_labels=classes, **shape, **WILD)
    if kind == "xlnet":
        shape = {"d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 64, "pad_token_id": 5}
        return XLNetConfig(vocab_size=size, num_labels=classes, **shape, **WILD)
    if kind == "albert":
        shape = {**WIDTH, "embedding_size": 16, "max_position_embeddings": 64, "pad_token_id": 0}
        return AlbertConfig(vocab_size=size, num_labels=classes, **shape, **WILD)
    return BertConfig(vocab_size=size, num_labels=classes, max_position_embeddings=64, **WIDTH, **WILD)


# special tokens in the order of their ids, those of padding, start and end, and the forms of one text and of two
FORMS = {
    "bert": ("[PAD] [UNK] [CLS] [SEP]", "[PAD] [CLS] [SEP]", "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "roberta": ("<s> <pad> </s> <unk>", "<pad> <s> </s>", "<s> $A </s>", "<s> $A </s> </s> $B:1 </s>:1"),
    "xlnet": (
        "<unk> <s> </s> <cls> <sep> <pad>",
        "<pad> <cls> <sep>",
        "$A <sep> <cls>:2",
        "$A <sep> $B:1 <sep>:1 <cls>:2",
    ),
    "albert": ("<pad> <unk> [CLS] [SEP]", "<pad> [CLS] [SEP]", "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
}


def tokenizer_of(kind):
    """A tokenizer of this family's form over the made-up words."""
    special, named, single, pair = FORMS[kind]
    order, (pad, start, end) = special.split(), named.split()
    unknown = next(token for token in order if "unk" in token.lower())
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*order, *_WORDS])}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    numbered = [(token, i) for i, token in enumerate(order)]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=numbered)
    names = {"pad_token": pad, "unk_token": unknown, "cls_token": start, "sep_token": end}
    inputs = ["input_ids", "attention_mask", *["token_type_ids"] * (kind != "roberta")]  # it has one segment alone
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)


@pytest.mark.parametrize("task", ["SST2", "MNLI"])
@pytest.mark.parametrize("kind", FORMS)
def test_a_store_says_what_transformers_says_of_each_text_alone(kind, task, tmp_path):
    tokenizer, task = tokenizer_of(kind), TASKS.get(task)
    data = build_data(Source(task, _generate(task, 700, 0), _generate(task, 60, 1), "tiny:generated"), tokenizer, None)
    folder = save_model(tmp_path / kind, config_of(kind, len(tokenizer), data.classes))
    store = teacher_store(folder, data, "report", CPU, quiet)
    model = load_teacher(folder, CPU).eval()
    place = -1 if kind == "xlnet" else 0
    assert len({len(tokenizer(*texts)["input_ids"]) for texts in data.rows["report"].texts}) > 5  # much is padded
    assert store.logits.std(0).min() > 0.1
    for i, texts in enumerate(data.rows["report"].texts):
        with torch.no_grad():
            said = model(**tokenizer(*texts, return_tensors="pt"), output_hidden_states=True)
        states = torch.stack([state[0, place] for state in said.hidden_states[1:]])
        assert torch.allclose(store.logits[i], said.logits[0], atol=1e-5, rtol=0)
        assert np.allclose(store.cls[i].float(), states, atol=5e-3, rtol=1e-3)  # half precision


@pytest.mark.parametrize("kind", ["roberta", "xlnet", "albert"])
def test_other_families_of_models_are_fine_tuned(kind, tmp_path):
    tokenizer, task = tokenizer_of(kind), TASKS.get("SST2")
    data = build_data(Source(task, _generate(task, 700, 0), _generate(task, 60, 1), "tiny:generated"), tokenizer, None)
    checkpoint = save_model(tmp_path / kind, config_of(kind, len(tokenizer), 2))
    folder = tuned(checkpoint, data, layers=2, updates=60, learning_rate=2e-3)
    store = teacher_store(folder, data, "train", CPU, quiet)
    assert store.layers == 2
    assert (store.logits.argmax(-1) == data.split("train").labels).float().mean() > 0.7


# ---------------------------------------------------------------------- teachers of one's own


@pytest.mark.parametrize("env_id", [i for i in ENV_IDS if i.split("-")[1] in ("SST2", "MRPC", "v0")])
def test_teachers_of_ones_own_take_the_place_of_the_ids(tmp_path, env_id):
    file = tmp_path / "teachers.json"
    file.write_text(json.dumps([{"name": "mine", "share": 0.5}, {"name": "other", "layers": 3, "epochs": 1}]))
    spec = EnvSpec(env_id, config={"teachers": str(file)})
    recipe, usual = spec.family.recipe, EnvSpec(env_id).family.recipe
    first, other = recipe.teacher_set()
    assert (first.name, first.share, other.name, other.layers, other.epochs) == ("mine", 0.5, "other", 3, 1)
    assert first.checkpoint == other.checkpoint == usual.teacher_set()[0].checkpoint
    assert [spec.share for spec in recipe.teacher_set("early")] == [0.5, 1.0]
    assert recipe.hash != usual.hash
    env = EnvSpec(env_id, backend="tiny", config={"teachers": str(file)}).make()
    assert [t["name"] for t in env.reset(seed=0)[1]["teachers"]] == ["mine", "other"]
    env.step(env.action_space.sample())
    if env_id.startswith("TeacherWeight"):
        assert env.action_space.shape == (2,)


BAD = {
    "nothing": ("", "not a file of teachers"),
    "no list": ("{}", "give a JSON list of objects"),
    "empty list": ("[]", "give a JSON list of objects"),
    "no object": ('["mine"]', "give a JSON list of objects"),
    "no name": ('[{"share": 0.5}]', "teacher 1: it has no name"),
    "two of a name": ('[{"name": "a"}, {"name": "a"}]', "the name 'a' is taken"),
    "a name of a context": ('[{"name": "flipped"}]', "the name 'flipped' is taken"),
    "unknown attribute": (
        '[{"name": "a"}, {"name": "b", "shares": 0.5}]',
        "teacher 2: unknown attribute 'shares'",
    ),
    "a text for a number": ('[{"name": "a", "share": "half"}]', "share cannot be 'half'"),
    "a truth for a number": ('[{"name": "a", "updates": true}]', "updates cannot be True"),
    "share of nothing": ('[{"name": "a", "share": 0}]', "share cannot be 0"),
    "all wrong": ('[{"name": "a", "label_noise": 1.0}]', "label_noise cannot be 1.0"),
    "a name of a knowledge type": ('[{"name": "hard"}]', "the name 'hard' is taken"),
    "a name of a quantile": ('[{"name": "student_loss_1"}]', "the name 'student_loss_1' is taken"),
    "seed below 0": ('[{"name": "a", "seed": -1}]', "seed cannot be -1"),
    "no end": ('[{"name": "a", "epochs": Infinity}]', "epochs cannot be inf"),
    "unknown domain": ('[{"name": "a", "domain": "imbd"}]', "did you mean 'imdb'?"),
    "unknown stage": ('[{"name": "a", "stage": "last"}]', "unknown stage 'last'"),
    "tuned and cut": ('[{"name": "a", "epochs": 0.0, "layers": 2}]', "keeps all of its layers"),
}


@pytest.mark.parametrize(("text", "said"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_of_teachers_is_one_line(tmp_path, text, said):
    file = tmp_path / "teachers.json"
    file.write_text(text)
    with pytest.raises(KDGymError) as caught:
        EnvSpec("TeacherWeight-SST2", backend="tiny", config={"teachers": str(file)}).make()
    assert said in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_of_teachers_is_one_line(tmp_path):
    with pytest.raises(KDGymError, match="not a file of teachers"):
        EnvSpec("JointControl-SST2", backend="tiny", config={"teachers": str(tmp_path / "none.json")}).make()


def test_a_first_teacher_that_came_tuned_has_no_early_form(tmp_path):
    file = tmp_path / "teachers.json"
    file.write_text('[{"name": "mine", "checkpoint": "somewhere", "epochs": 0}]')
    recipe = EnvSpec("KnowledgeSelect-SST2", config={"teachers": str(file)}).family.recipe
    (wrong,) = recipe.teacher_set("flipped")
    assert (wrong.checkpoint, wrong.label_noise > 0.5, wrong.epochs > 0) == ("somewhere", True, True)
    with pytest.raises(KDGymError, match="'mine' came tuned: it has no 'early' form"):
        recipe.teacher_set("early")


def test_a_checkpoint_that_was_not_tuned_is_not_taken_as_it_is(checkpoint, tmp_path):
    with pytest.raises(KDGymError, match="has fewer layers than that"):
        load_teacher(checkpoint, CPU, 2, layers=9)
    AutoModel.from_pretrained(checkpoint).save_pretrained(tmp_path / "raw")
    with pytest.raises(KDGymError, match="is not tuned for classification"):
        load_teacher(tmp_path / "raw", CPU)
    assert load_teacher(tmp_path / "raw", CPU, 2).config.num_labels == 2
