import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_gym.errors import KDGymError
from kd_gym.tasks.readers import Rows
from kd_gym.tasks.sources import Source, load_source
from kd_gym.tasks.splits import SMALLEST_TRAIN, SPLITS, carve, find_roots, normalise
from kd_gym.tasks.task import TASKS, Task

WORDS = ["an", "ape", "ate", "big", "cold", "cake", "each", "day", "for", "good", "game", "he"]


def made_rows(count: int, seed: int, columns: int = 1) -> Rows:
    """Rows out of few words, so that some are equal but for case and spaces, and many contain others."""
    random = np.random.default_rng(seed)
    rows = Rows()
    for _ in range(count):
        texts = []
        for _ in range(columns):
            text = " ".join(random.choice(WORDS, random.integers(1, 9 // columns**2)))
            if random.random() < 0.2:
                text = f"  {text.upper().replace(' ', '   ')} "
            texts.append(text)
        rows.texts.append(tuple(texts))
        rows.labels.append(int(random.integers(2)))
    return rows


def source(train: Rows, validation: Rows | None = None, nested: bool = False, columns: int = 1) -> Source:
    task = Task("Toy", ("text1", "text2")[:columns], ("no", "yes"), nested=nested)
    return Source(task, train, validation, "made")


def table(of: Source, split: str) -> Rows:
    assert of.train is not None
    return of.validation if split == "report" and of.validation else of.train


def texts(of: Source, splits: dict[str, list[int]]) -> dict[str, list[str]]:
    return {name: [normalise(table(of, name).texts[row]) for row in rows] for name, rows in splits.items()}


def contains(outer: str, inner: str) -> bool:
    """Whether a text stands in another as whole words: the slow and obvious way."""
    a, b = outer.split(), inner.split()
    return any(a[i : i + len(b)] == b for i in range(len(a) - len(b) + 1))


CASES = [
    pytest.param((validation, nested, columns), id=f"{'published' if validation else 'carved'}-{nested=}-{columns}")
    for validation in (True, False)
    for nested, columns in ((False, 1), (False, 2), (True, 1))
]


@pytest.fixture(params=CASES)
def carved(request) -> tuple[Source, dict[str, list[int]]]:
    validation, nested, columns = request.param
    made = source(made_rows(900, 0, columns), made_rows(60, 1, columns) if validation else None, nested, columns)
    return made, carve(made)


def test_no_text_stands_in_two_splits_or_twice_in_one(carved):
    of, splits = carved
    assert tuple(splits) == SPLITS
    named = texts(of, splits)
    if of.validation:  # is as it was published
        named["report"] = sorted(set(named["report"]))
    every = [text for part in named.values() for text in part]
    assert len(every) == len(set(every))


def test_every_split_but_train_has_the_same_size_and_none_is_empty(carved):
    of, splits = carved
    assert all(splits.values())
    held = ["reward", "select"] + ([] if of.validation else ["report"])
    assert {len(splits[name]) for name in held} == {len({normalise(x) for x in of_rows(of)}) // 10}
    assert len(splits["train"]) > len(splits["reward"])


def of_rows(of: Source) -> Iterator[tuple[str, ...]]:
    """The train rows that are not in the published validation set."""
    published = {normalise(x) for x in of.validation.texts} if of.validation else set()
    return (x for x in of.train.texts if normalise(x) not in published)


def test_published_validation_is_report_whole_and_in_no_other_split(carved):
    of, splits = carved
    if of.validation is None:
        assert not {normalise(of.train.texts[r]) for r in splits["report"]} & {
            normalise(of.train.texts[r]) for name in ("train", "reward", "select") for r in splits[name]
        }
        return
    assert splits["report"] == list(range(len(of.validation)))
    published = {normalise(x) for x in of.validation.texts}
    assert published & {normalise(x) for x in of.train.texts}, "the case has no overlap, so it would show nothing"
    for name in ("train", "reward", "select"):
        assert not published & {normalise(of.train.texts[r]) for r in splits[name]}


def test_no_row_is_lost_unless_it_is_a_duplicate_published_or_nested(carved):
    of, splits = carved
    if of.task.nested:
        pytest.skip("nested data loses rows on purpose")
    kept = {normalise(of.train.texts[r]) for name in SPLITS for r in splits[name] if table(of, name) is of.train}
    assert kept == {normalise(x) for x in of_rows(of)}


def test_the_carve_does_not_depend_on_the_order_of_rows(carved):
    of, splits = carved
    order = np.random.default_rng(5).permutation(len(of.train)).tolist()
    shuffled = Source(of.task, of.train.take(order), of.validation, of.name)
    again = texts(shuffled, carve(shuffled))
    assert {n: sorted(t) for n, t in again.items()} == {n: sorted(t) for n, t in texts(of, splits).items()}


def test_held_out_rows_stay_when_unrelated_rows_are_added_to_small_data():
    base = made_rows(600, 0)
    more = Rows([*base.texts, ("a text of quite other words",)], [*base.labels, 1])
    a, b = (texts(of, carve(of)) for of in (source(base), source(more)))
    for name in ("reward", "select", "report"):
        assert len(set(a[name]) ^ set(b[name])) <= 3, "hashes of texts decide, not their places"


@pytest.mark.parametrize("published", [True, False])
def test_nested_held_out_rows_are_parts_of_no_other_and_their_parts_leave_train(published):
    of = source(made_rows(900, 2), made_rows(60, 3) if published else None, nested=True)
    splits = carve(of)
    named = texts(of, splits)
    published_texts = {normalise(x) for x in of.validation.texts} if of.validation else set()
    every = {normalise(x) for x in of.train.texts} - published_texts
    held = [text for name in SPLITS if name not in ("train", "report" if published else "") for text in named[name]]
    assert held
    for text in held:
        assert not [other for other in every if other != text and contains(other, text)]
        assert not [other for other in named["train"] if contains(text, other)]
    parts = {other for other in every for text in held if contains(text, other)}
    assert set(named["train"]) == every - parts, "and nothing else leaves"
    assert parts - set(held), "the case has no nested rows, so it would show nothing"


short = st.lists(st.sampled_from("abc"), min_size=1, max_size=5).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(short, max_size=14, unique=True))
def test_find_roots_equals_brute_force(keys):
    assert find_roots(keys) == [
        i for i, key in enumerate(keys) if not any(contains(other, key) for j, other in enumerate(keys) if i != j)
    ]


def test_whole_words_count_not_letters():
    assert find_roots(["art", "a party", "the art of it"]) == [1, 2]


def test_pairs_are_equal_only_as_a_whole():
    assert normalise(("A  b", "c")) == normalise(("a b", "C "))
    assert normalise(("a b", "c")) != normalise(("a", "b c"))
    assert normalise(("a", "b")) != normalise(("b", "a"))


def test_the_label_of_a_duplicate_is_the_first_one():
    rows = made_rows(600, 0)
    first = {}
    for text, label in zip(rows.texts, rows.labels, strict=True):
        first.setdefault(normalise(text), label)
    for split in carve(source(rows)).values():
        for row in split:
            assert rows.labels[row] == first[normalise(rows.texts[row])]


def test_too_few_rows_are_an_error_that_names_the_data():
    for count in (1, 5, 20, SMALLEST_TRAIN):
        few = Rows([(f"text number {i}",) for i in range(count)], [i % 2 for i in range(count)])
        with pytest.raises(KDGymError, match=r"^made: .* rows"):
            carve(source(few))


def test_no_split_grows_beyond_a_thousand_rows():
    many = Rows([(f"text number {i}",) for i in range(15_000)], [i % 2 for i in range(15_000)])
    splits = carve(source(many))
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 12_000, "reward": 1000, "select": 1000, "report": 1000,
    }  # fmt: skip


def test_tasks_carve_the_same_texts_differently():
    rows = made_rows(600, 0)
    carves = [carve(Source(Task(n, ("text",), ("no", "yes")), rows, None, "made"))["reward"] for n in ("A", "B")]
    assert carves[0] != carves[1]


REAL = next(
    (f for e in os.environ.get("KD_GYM_DATA", "").split(os.pathsep) if e and (f := Path(e) / "sst2").is_dir()), None
)


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="KD_GYM_DATA has no sst2 folder")
def test_the_carve_of_sst2_is_disjoint_and_follows_the_rule_of_phrases():
    of = load_source("SST2", str(REAL))
    assert of.validation is not None
    splits = carve(of)
    named = {name: set(part) for name, part in texts(of, splits).items()}
    for a, b in [(a, b) for i, a in enumerate(SPLITS) for b in SPLITS[i + 1 :]]:
        assert not named[a] & named[b], (a, b)
    assert {len(splits[name]) for name in ("reward", "select")} == {1000}
    published = {normalise(x) for x in of.validation.texts}
    every = {normalise(x) for x in of.train.texts} - published
    held = named["reward"] | named["select"]
    # by text search, independently of the code under test: spaces at the ends make whole words of it
    whole = "\n".join(f" {text} " for text in sorted(every))
    for text in held:
        assert whole.count(f" {text} ") == 1
    held_whole = "\n".join(f" {text} " for text in sorted(held))
    assert not [text for text in named["train"] if f" {text} " in held_whole]
    assert len(named["train"]) > 0.5 * len(every)


@pytest.mark.parametrize("name", TASKS.names())
def test_only_tasks_with_one_text_are_nested(name):
    task = TASKS.get(name)
    assert not (task.nested and task.pair), "the rule of phrases reads an input as one text"
