import numpy as np
import pytest
import torch

from kd_gym.backend.tiny import tiny_data, tiny_tokenizer
from kd_gym.errors import KDGymError
from kd_gym.tasks.batches import Buckets, RowStream, flip_labels
from kd_gym.tasks.data import build_data
from kd_gym.tasks.readers import Rows
from kd_gym.tasks.sources import Source
from kd_gym.tasks.splits import SPLITS
from kd_gym.tasks.task import TASKS, Task
from kd_gym.tasks.tokens import TokenSplit

BATCH = 8


@pytest.fixture(params=[None, *TASKS.names()])
def data(request):
    return tiny_data(request.param)


@pytest.mark.parametrize("split", SPLITS)
def test_batches_are_what_the_tokenizer_itself_pads(data, split):
    rows = torch.tensor([5, 0, 3, 3, 11])
    tokens = data.split(split).batch(rows)
    columns = [list(column) for column in zip(*data.rows[split].take(rows.tolist()).texts, strict=True)]
    said = tiny_tokenizer()(*columns, padding=True, return_tensors="pt", return_token_type_ids=True)
    assert torch.equal(data.vocabulary[tokens.ids], said["input_ids"])
    assert torch.equal(tokens.types, said["token_type_ids"])
    assert torch.equal(tokens.mask.long(), said["attention_mask"])
    assert data.split(split).labels.tolist() == data.rows[split].labels
    if data.task.pair:
        assert tokens.types.any(), "the second text has a type of its own"


def test_a_wider_batch_is_the_same_batch_with_more_padding():
    split = tiny_data("MRPC").split("train")
    rows = torch.tensor([[4, 8], [15, 16]])
    narrow, wide = split.batch(rows), split.batch(rows, 40)
    width = narrow.ids.shape[-1]
    assert wide.ids.shape == (2, 2, 40)
    for a, b in zip(narrow, wide, strict=True):
        assert torch.equal(a, b[..., :width])
        assert not b[..., width:].any()


def test_the_last_row_does_not_read_beyond_the_end():
    split = tiny_data("SST2").split("train")
    last = len(split) - 1
    tokens = split.batch(torch.tensor([last]), 60)
    assert int(tokens.mask.sum()) == int(split.length[last])
    assert torch.equal(tokens.ids[tokens.mask], split.flat[-int(split.length[last]) :])


@pytest.mark.parametrize("pair", [False, True])
def test_long_inputs_are_cut_as_the_tokenizer_cuts_them(pair):
    columns = ("text1", "text2")[: 1 + pair]
    random = np.random.default_rng(0)
    words = ["ban", "ber", "kis", "lol", "mum"]

    def text() -> str:
        return " ".join(random.choice(words, random.integers(2, 40)))

    rows = Rows([tuple(text() for _ in columns) for _ in range(200)], [i % 2 for i in range(200)])
    made = build_data(
        Source(Task("Long", columns, ("a", "b"), max_length=16), rows, None, "made"), tiny_tokenizer(), None
    )
    split, texts = made.split("train"), made.rows["train"].texts
    assert int(split.length.max()) == 16
    tokens = split.batch(torch.arange(len(split)))
    said = tiny_tokenizer()(
        *[list(c) for c in zip(*texts, strict=True)],
        padding=True,
        truncation=True,
        max_length=16,
        return_tensors="pt",
        return_token_type_ids=True,
    )
    assert torch.equal(made.vocabulary[tokens.ids], said["input_ids"])
    assert torch.equal(tokens.types, said["token_type_ids"])


def test_the_vocabulary_is_that_of_all_four_splits_with_padding_first():
    made = tiny_data("SST2")
    used = {i for name in SPLITS for (text,) in made.rows[name].texts for i in tiny_tokenizer()(text)["input_ids"]}
    assert made.vocabulary.tolist() == sorted({0, *used})


@pytest.mark.parametrize(("limit", "size"), [(None, 64), (50, 7), (1, 64)])
def test_evaluation_batches_hold_every_row_once_with_its_label(limit, size):
    split = tiny_data("MNLI").split("reward")
    count = len(split) if limit is None else limit
    batches = split.batches(limit, size)
    assert [len(labels) for _, labels in batches[:-1]] == [size] * (len(batches) - 1)
    order = split.by_length(limit)
    assert sorted(order.tolist()) == list(range(count))
    assert torch.cat([labels for _, labels in batches]).tolist() == split.labels[order].tolist()
    widths = [tokens.ids.shape[-1] for tokens, _ in batches]
    assert widths == sorted(widths)
    assert sum(int(tokens.mask.sum()) for tokens, _ in batches) == int(split.length[:count].sum())


def test_to_a_device_keeps_every_row():
    split = tiny_data("RTE").split("select")
    moved = split.to(torch.device("cpu"))
    assert isinstance(moved, TokenSplit)
    assert torch.equal(moved.flat, split.flat)
    assert len(moved) == len(split)


# ---------------------------------------------------------------------- which rows at which update


def lengths(count: int = 700, seed: int = 0) -> torch.Tensor:
    """Lengths as texts have them: many short ones, a few long ones."""
    return torch.from_numpy(np.random.default_rng(seed).geometric(0.08, count).clip(3, 128))


@pytest.fixture(params=[(700, 8), (5000, 32), (40, 32), (32, 32)], ids=str)
def buckets(request):
    count, batch = request.param
    return Buckets(lengths(count), batch, key=3)


def turns(buckets: Buckets, stream: RowStream, updates: int) -> dict[int, list[int]]:
    """The rows that a stream draws from each bucket, in order."""
    drawn: dict[int, list[int]] = {}
    for update in range(updates):
        drawn.setdefault(buckets.visit(update)[0], []).extend(stream.rows(update)[0].tolist())
    return drawn


def test_every_row_is_in_one_bucket_that_is_wide_enough(buckets):
    assert sorted(np.concatenate(buckets.rows).tolist()) == list(range(sum(map(len, buckets.rows))))
    length = lengths(sum(map(len, buckets.rows)))
    for rows, width in zip(buckets.rows, buckets.width, strict=True):
        assert int(length[rows].max()) == width
        assert len(rows) >= buckets.batch
    ends = [int(length[rows].max()) for rows in buckets.rows]
    begins = [int(length[rows].min()) for rows in buckets.rows]
    assert all(end < begin for end, begin in zip(ends, begins[1:], strict=False)), "one length, one bucket"


@pytest.mark.parametrize("share", [1.0, 0.3, 0.02])
def test_no_row_comes_twice_before_its_bucket_has_been_through(buckets, share):
    stream = RowStream(buckets, 11, share)
    for bucket, drawn in turns(buckets, stream, 4 * int(buckets.visits.sum())).items():
        size = int(np.ceil(share * len(buckets.rows[bucket])))
        mine = set(drawn)
        for begin in range(0, len(drawn), size):
            turn = drawn[begin : begin + size]
            assert len(set(turn)) == len(turn)
            assert len(turn) < size or set(turn) == mine, "a whole turn is the whole share"
        assert len(mine) == min(size, len(drawn))
        assert mine <= set(buckets.rows[bucket].tolist())


def test_each_turn_through_a_bucket_has_an_order_of_its_own():
    made = Buckets(lengths(), BATCH, key=3)
    for bucket, drawn in turns(made, RowStream(made, 11, 1.0), 4 * int(made.visits.sum())).items():
        size = len(made.rows[bucket])
        assert drawn[:size] != drawn[size : 2 * size]


def test_an_epoch_visits_buckets_in_proportion_to_their_rows(buckets):
    per_epoch = int(buckets.visits.sum())
    for epoch in range(3):
        seen = [buckets.visit(epoch * per_epoch + place) for place in range(per_epoch)]
        for bucket, rows in enumerate(buckets.rows):
            ordinals = [count for b, count in seen if b == bucket]
            assert len(ordinals) == max(1, round(len(rows) / buckets.batch))
            assert ordinals == list(range(epoch * len(ordinals), (epoch + 1) * len(ordinals)))


def test_two_epochs_see_all_rows(buckets):
    drawn = turns(buckets, RowStream(buckets, 0, 1.0), 2 * int(buckets.visits.sum()))
    assert {row for rows in drawn.values() for row in rows} == set(range(sum(map(len, buckets.rows))))


def test_widths_depend_on_the_key_and_the_update_alone():
    made = Buckets(lengths(), BATCH, key=3)
    streams = [RowStream(made, seed, share) for seed, share in ((0, 1.0), (1, 1.0), (2, 0.1))]
    widths = [[stream.rows(update)[1] for update in range(200)] for stream in streams]
    assert widths[0] == widths[1] == widths[2]
    assert len(set(widths[0])) > 3
    other = Buckets(lengths(), BATCH, key=4)
    assert [other.width[other.visit(update)[0]] for update in range(200)] != widths[0]
    first, second = (widths[0][i * int(made.visits.sum()) :][:50] for i in range(2))
    assert first != second, "each epoch has an order of its own"


def test_rows_are_as_long_as_their_width_allows(buckets):
    length = lengths(sum(map(len, buckets.rows)))
    stream = RowStream(buckets, 5, 1.0)
    for update in range(60):
        rows, width = stream.rows(update)
        assert len(rows) == buckets.batch
        assert int(length[rows].max()) <= width


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_streams_are_functions_of_seed_and_update_whatever_the_order_of_calls(share):
    made = Buckets(lengths(), BATCH, key=3)
    updates = list(range(300))
    forward = {u: RowStream(made, 7, share).rows(u)[0].tolist() for u in updates[:40]}
    stream = RowStream(made, 7, share)
    forward |= {u: stream.rows(u)[0].tolist() for u in updates}
    fresh = Buckets(lengths(), BATCH, key=3)  # with nothing remembered
    jumping = RowStream(fresh, 7, share)
    order = np.random.default_rng(0).permutation(updates).tolist()
    assert {u: jumping.rows(u)[0].tolist() for u in order} == forward
    assert all(RowStream(made, 7, share).rows(u)[0].tolist() == forward[u] for u in (0, 17, 299))


def test_seeds_draw_different_rows():
    made = Buckets(lengths(), BATCH, key=3)
    a, b = (RowStream(made, seed, 1.0) for seed in (0, 1))
    assert sum(a.rows(u)[0].tolist() == b.rows(u)[0].tolist() for u in range(50)) == 0


def test_a_share_is_a_fixed_part_of_the_rows_and_depends_on_the_seed():
    made = Buckets(lengths(), BATCH, key=3)
    drawn = [{row for u in range(600) for row in RowStream(made, seed, 0.1).rows(u)[0].tolist()} for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == sum(int(np.ceil(0.1 * len(rows))) for rows in made.rows)
    assert 0.1 <= len(drawn[0]) / 700 < 0.12


def test_fewer_rows_than_a_batch_are_an_error_that_says_so():
    with pytest.raises(KDGymError, match="7 rows, fewer than one batch of 8"):
        Buckets(lengths(7), 8, key=0)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("probability", [0.1, 0.3, 1.0])
def test_flipped_labels_are_other_classes_at_the_given_rate(classes, probability):
    labels = torch.arange(30_000) % classes
    noisy = flip_labels(labels, classes, probability, seed=4)
    changed = noisy != labels
    deviation = (probability * (1 - probability) / len(labels)) ** 0.5
    assert abs(float(changed.float().mean()) - probability) <= 4 * deviation
    assert int(noisy.min()) >= 0
    assert int(noisy.max()) < classes
    shifts = torch.bincount((noisy - labels)[changed] % classes, minlength=classes).double() / int(changed.sum())
    assert shifts[0] == 0
    assert torch.allclose(shifts[1:], torch.tensor(1 / (classes - 1)).double(), atol=0.05), "no class is preferred"


def test_label_noise_depends_on_the_seed_and_leaves_the_given_labels_alone():
    labels = torch.arange(2000) % 3
    before = labels.clone()
    a, b, c = (flip_labels(labels, 3, 0.3, seed) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(labels, before)
    assert torch.equal(flip_labels(labels, 3, 0.0, 0), before)
