import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from kd_gym import ENV_IDS
from kd_gym.agents.protocol import AGENTS
from kd_gym.backend.knowledge import KNOWLEDGE
from kd_gym.backend.tiny import tiny_tokenizer
from kd_gym.cli import COMMANDS, main
from kd_gym.envs import lab
from kd_gym.envs.contexts import SETS
from kd_gym.errors import KDGymError
from kd_gym.experiments.describe import KINDS
from kd_gym.tasks import embedded
from kd_gym.tasks.readers import SUFFIXES
from kd_gym.tasks.task import TASKS

TINY = ("--backend", "tiny")
SST2 = ("--env", "KnowledgeSelect-SST2")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("KD_GYM_DATA", "")


def written(cache: Path) -> list[Path]:
    """What a command left in the cache, whole or not, apart from the locks, which stay."""
    return [p for folder in cache.glob("*") for p in folder.iterdir() if p.suffix != ".lock"]


@pytest.fixture
def complaint(capsys, tmp_path):
    """The one line that a command says before it exits with 2 and leaves nothing behind."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            main([str(a) for a in arguments])
        said = capsys.readouterr()
        assert exit_.value.code == 2, said.err
        assert "Traceback" not in said.out + said.err
        lines = said.err.splitlines()
        assert len(lines) == 1, said.err
        assert lines[0].startswith("kd-gym: ")
        assert not written(tmp_path / "cache"), "nothing half-written"
        assert not list((tmp_path / "work").iterdir()), "no run directory"
        return lines[0].removeprefix("kd-gym: ")

    return run


@pytest.fixture
def _light_checkpoint(tmp_path, monkeypatch):
    """A folder with a tokenizer instead of the embedded model: data is read and carved under it."""
    folder = tmp_path / "checkpoint"
    tiny_tokenizer().save_pretrained(folder)
    monkeypatch.setattr(lab, "checkpoint_folder", lambda name: folder)


def misspelt(name: str) -> str:
    """The name with one letter in the middle lost, in other case."""
    middle = len(name) // 2
    return (name[:middle] + name[middle + 1 :]).swapcase()


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize("name", [i for i in ENV_IDS if "Base" not in i])
def test_a_misspelt_env_is_answered_with_the_nearest_one(complaint, name):
    short = name.removesuffix("-v0")
    for command in (("train", "--agent", "ppo"), ("evaluate", "uniform"), ("prepare",)):
        said = complaint(command[0], "--env", misspelt(short), *command[1:], *TINY)
        assert said == f"unknown env {misspelt(short)!r}: did you mean {short!r}?"


@pytest.mark.parametrize("name", AGENTS.names())
def test_a_misspelt_agent_is_answered_with_the_nearest_one(complaint, name):
    wrong = misspelt(name) if len(name) > 3 else name + "x"
    assert f"did you mean {name!r}?" in complaint("train", *SST2, *TINY, "--agent", wrong)
    assert f"did you mean {name!r}?" in complaint("evaluate", *SST2, *TINY, wrong)
    assert f"did you mean {name!r}?" in complaint("evaluate", *SST2, *TINY, "uniform", f"{wrong}:1,1")


@pytest.mark.parametrize("name", KNOWLEDGE.names())
def test_a_misspelt_knowledge_type_is_answered_with_the_nearest_one(complaint, name):
    wrong = misspelt(name)
    assert f"did you mean {name!r}?" in complaint("evaluate", *SST2, *TINY, "uniform", "--env-config.knowledge", wrong)
    assert f"did you mean {name!r}?" in complaint("describe", misspelt(name))


@pytest.mark.parametrize("name", SETS)
def test_a_misspelt_context_is_answered_with_the_nearest_one(complaint, name):
    for command in (
        ("train", "--agent", "ppo", "--env-config.context"),
        ("evaluate", "uniform", "--env-config.context"),
        ("evaluate", "uniform", "--context"),
        ("prepare", "--env-config.context"),
    ):
        said = complaint(command[0], *SST2, *TINY, *command[1:], misspelt(name))
        assert said.startswith(f"unknown context {misspelt(name)!r}: did you mean {name!r}?")


@pytest.mark.parametrize("name", [*TASKS.names(), *AGENTS.names(), *KNOWLEDGE.names()])
def test_describe_answers_a_misspelt_name_with_the_nearest_one(complaint, name):
    if len(name) > 4:
        assert f"did you mean {name!r}?" in complaint("describe", misspelt(name))


@pytest.mark.parametrize("name", KINDS)
def test_list_answers_a_misspelt_kind_with_the_nearest_one(complaint, name):
    assert f"did you mean {name!r}?" in complaint("list", misspelt(name))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_misspelt_command_is_answered_with_the_nearest_one(complaint, name):
    assert f"did you mean {name!r}?" in complaint(name[:-1])


@pytest.mark.usefixtures("_light_checkpoint")
@pytest.mark.parametrize("name", ["auto", "hub", "embedded"])
def test_a_misspelt_data_source_is_answered_with_the_nearest_one(complaint, name):
    assert f"did you mean {name!r}?" in complaint("prepare", *SST2, "--data", name[:-1] + "x")


@pytest.mark.parametrize("name", ["xyz", "???", "", "0"])
def test_a_name_that_is_near_to_none_is_answered_with_all(complaint, name):
    assert "ppo" in complaint("train", *SST2, *TINY, "--agent", name)
    assert "held-out" in complaint("evaluate", *SST2, *TINY, "uniform", "--context", name)


@pytest.mark.parametrize(
    "path", ["no_such_module_here:Thing", "json:Nothing", "json:dumps", ":Thing", "os.path:", ".cli:main", "a:b:c"]
)
def test_an_agent_that_cannot_be_loaded_is_a_line(complaint, path):
    said = complaint("train", *SST2, *TINY, "--agent", path)
    assert repr(path) in said


@pytest.mark.parametrize("argument", ["", "1", "1,1,1", "1,1,1,-1", "0,0,0,0", "1,1,1,nan", "1,1,1,inf", "a,b,c,d"])
def test_static_weights_that_are_none_are_answered_with_an_example(complaint, argument):
    assert "static:1,1,1,1" in complaint("evaluate", *SST2, *TINY, f"static:{argument}")


def test_an_agent_that_has_to_learn_first_is_not_evaluated(complaint):
    assert "kd-gym train" in complaint("evaluate", *SST2, *TINY, "ppo")


def test_nothing_to_evaluate_is_a_line(complaint):
    assert "at least one controller" in complaint("evaluate", *SST2, *TINY)


# ---------------------------------------------------------------------- data files


def good(count: int = 80) -> list[str]:
    return [f"ban ber kis {i},{'yes' if i % 2 else 'no'}" for i in range(count)]


def text_file(lines: list[str], header: str = "text,label") -> bytes:
    return "\n".join([header, *lines, ""]).encode()


def with_line(place: int, line: str) -> bytes:
    lines = good()
    lines[place - 2] = line  # the header is line 1
    return text_file(lines)


BAD_FILES = {
    "no label column": (text_file(good(), "text,mark"), r"train.csv, row 2: a label column \('label'\) is missing"),
    "no text column": (
        text_file(good(), "words,label"),
        r"train.csv, row 2: a text column \('text'\) is missing.*rename",
    ),
    "no byte": (b"", "train.csv: no rows; a header and at least one row are expected"),
    "a header alone": (b"text,label\n", "train.csv: no rows; .*expected"),
    "blank lines alone": (b"\n\n\n", "train.csv: no rows; .*expected"),
    "one class": (text_file([f"ban {i},yes" for i in range(80)]), r"train.csv: one class only \(yes\); two or more"),
    "not UTF-8": (
        text_file(good()).replace(b"kis 7,", b"kis \xe9,"),
        "train.csv, line 9: not UTF-8 text; save the file as UTF-8",
    ),
    "UTF-16": (text_file(good()).decode().encode("utf-16"), "train.csv, line 1: not UTF-8 text; save"),
    "too many fields": (with_line(30, "ban, ber,yes"), "train.csv, line 30: 2 columns are expected"),
    "too few fields": (with_line(30, "ban"), "train.csv, line 30: 2 columns are expected"),
    "an open quote": (with_line(30, '"ban,yes'), "train.csv, line .*quote fields that hold commas"),
    "empty text": (with_line(30, "  ,yes"), "train.csv, row 30: empty text; remove the row or fill text"),
    "no label": (with_line(30, "ban,"), r"train.csv, row 30: label '' is outside the declared set \(no, yes\)"),
    "fewer rows than a batch": (text_file(good(31)), "train.csv: .*rows.*add rows"),
    "one row of each class": (text_file(good(2)), "train.csv: 2 different rows are too few to carve"),
    "the same row again and again": (text_file(good(2) * 50), "train.csv: 2 different rows are too few to carve"),
}


@pytest.mark.usefixtures("_light_checkpoint")
@pytest.mark.parametrize(("content", "said"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_csv_file_is_named_with_row_and_remedy(complaint, tmp_path, content, said):
    file = tmp_path / "train.csv"
    file.write_bytes(content)
    assert re.search(said, complaint("prepare", "--env", "KnowledgeSelect", "--data", file))


@pytest.mark.usefixtures("_light_checkpoint")
@pytest.mark.parametrize("command", [("train", "--agent", "ppo"), ("evaluate", "uniform"), ("prepare",)], ids=str)
def test_every_command_names_a_bad_file(complaint, tmp_path, command):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.csv").write_bytes(with_line(30, "ban,"))
    said = complaint(*command, "--env", "KnowledgeSelect", "--data", tmp_path / "mine")
    assert "train.csv, row 30: label '' is outside the declared set" in said


@pytest.mark.usefixtures("_light_checkpoint")
@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["ban,yes", "ber,maybe"], r"b.csv, row 3: label 'maybe' is outside the declared set \(no, yes\)"),
        (["ban,yes", "ber,yes"], r"b.csv: one class only \(yes\)"),
        ([], "b.csv: no rows"),
    ],
)
def test_a_bad_validation_file_is_the_one_that_is_named(complaint, tmp_path, lines, said):
    (tmp_path / "a.csv").write_bytes(text_file(good()))
    (tmp_path / "b.csv").write_bytes(text_file(lines))
    data = f"{tmp_path / 'a.csv'},{tmp_path / 'b.csv'}"
    assert re.search(said, complaint("prepare", "--env", "KnowledgeSelect", "--data", data))


BAD_LINES = {
    "no JSON": ('{"text": "ban", label: 1}', "train.jsonl, line 5: not JSON .*; one object a line is expected"),
    "a list": ('["ban", 1]', "train.jsonl, line 5: not a JSON object; one object a line is expected"),
    "a missing text": ('{"label": 1}', "train.jsonl, row 5: empty text; remove the row or fill text"),
    "a null text": ('{"text": null, "label": 1}', "train.jsonl, row 5: empty text; remove the row or fill text"),
    "a missing label": ('{"text": "ban"}', "train.jsonl, row 5: label None is outside the declared set"),
    "a null label": ('{"text": "ban", "label": null}', "train.jsonl, row 5: label None is outside the declared set"),
    "bytes": (b'{"text": "b\xff", "label": 1}', "train.jsonl, line 5: not UTF-8 text; save the file as UTF-8"),
}


@pytest.mark.usefixtures("_light_checkpoint")
@pytest.mark.parametrize(("line", "said"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_of_jsonl_is_named_with_its_remedy(complaint, tmp_path, line, said):
    lines = [f'{{"text": "ban {i}", "label": {i % 2}}}'.encode() for i in range(80)]
    lines[4] = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "train.jsonl").write_bytes(b"\n".join(lines))
    assert re.search(said, complaint("prepare", "--env", "KnowledgeSelect", "--data", tmp_path / "train.jsonl"))


def parquet_bytes(table: dict) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(table), sink)
    return sink.getvalue().to_pybytes()


def mixed_bytes(count: int = 2500) -> pa.Array:
    """Strings, one of which is not UTF-8, as some writers leave them."""
    words = [f"ban {i}".encode() for i in range(count)]
    words[1700] = b"ban \xff"
    return pa.array(words, pa.binary())


PLAIN = {"text": [f"ban {i}" for i in range(80)], "label": [i % 2 for i in range(80)]}
BAD_PARQUET = {
    "no Parquet": (b"text,label\nban,1\n", "train.parquet: not a readable Parquet file .*; write it anew"),
    "no byte": (b"", "train.parquet: not a readable Parquet file .*; write it anew"),
    "the first half": (parquet_bytes(PLAIN)[:400], "train.parquet: not a readable Parquet file .*; write it anew"),
    "a broken footer": (
        (lambda b: b[:-60] + b"\xff" * 40 + b[-20:])(parquet_bytes(PLAIN)),
        "train.parquet: not a readable Parquet file .*; write it anew",
    ),
    "no row": (parquet_bytes({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}), "no rows"),
    "bytes": (
        parquet_bytes({"text": mixed_bytes(), "label": [i % 2 for i in range(2500)]}),
        "train.parquet, row 1701: not UTF-8 text; save",
    ),
    "a null text": (
        parquet_bytes({**PLAIN, "text": [None if i == 6 else f"ban {i}" for i in range(80)]}),
        "train.parquet, row 7: empty text",
    ),
    "a null label": (
        parquet_bytes({**PLAIN, "label": [None if i == 6 else i % 2 for i in range(80)]}),
        "train.parquet, row 7: label None is outside",
    ),
}


@pytest.mark.usefixtures("_light_checkpoint")
@pytest.mark.parametrize(("content", "said"), BAD_PARQUET.values(), ids=BAD_PARQUET.keys())
def test_a_bad_parquet_file_is_named_with_row_and_remedy(complaint, tmp_path, content, said):
    (tmp_path / "train.parquet").write_bytes(content)
    assert re.search(said, complaint("prepare", "--env", "KnowledgeSelect", "--data", tmp_path / "train.parquet"))


@pytest.mark.usefixtures("_light_checkpoint")
@pytest.mark.parametrize("name", TASKS.names())
def test_a_label_outside_the_declared_set_and_a_missing_column_are_named_for_every_task(complaint, tmp_path, name):
    task = TASKS.get(name)
    folder = tmp_path / name.lower()
    folder.mkdir()
    classes = len(task.labels)
    texts = {column: [f"ban {i}" for i in range(90)] for column in task.text}
    env = f"KnowledgeSelect-{name}"
    for wrong in (classes, -1):
        labels = [wrong if i == 44 else i % classes for i in range(90)]
        (folder / "train.parquet").write_bytes(parquet_bytes({**texts, "label": labels}))
        said = complaint("prepare", "--env", env, "--data", tmp_path)
        assert f"train.parquet, row 45: label {wrong} is outside the declared set ({', '.join(task.labels)})" in said
    for column in texts:
        rest = {key: value for key, value in texts.items() if key != column}
        (folder / "train.parquet").write_bytes(parquet_bytes({**rest, "label": [i % classes for i in range(90)]}))
        said = complaint("prepare", "--env", env, "--data", tmp_path)
        assert f"train.parquet, row 1: column {column!r} is missing" in said


@pytest.mark.usefixtures("_light_checkpoint")
def test_paths_that_lead_nowhere_are_named(complaint, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("text,label\n")
    (tmp_path / "good.csv").write_bytes(text_file(good()))
    own = ("prepare", "--env", "KnowledgeSelect", "--data")
    assert "no such file or folder" in complaint(*own, tmp_path / "missing.csv")
    assert "no such file or folder" in complaint("prepare", *SST2, "--data", tmp_path / "missing")
    assert "no such file or folder" in complaint(*own, f"{tmp_path / 'good.csv'},{tmp_path / 'missing.csv'}")
    assert "no train.* here" in complaint(*own, tmp_path / "empty")
    assert "sst2/train.* or train.* here" in complaint("prepare", *SST2, "--data", tmp_path / "empty")
    said = complaint(*own, tmp_path / "notes.txt")
    assert "notes.txt: unknown file type '.txt'; use " + ", ".join(SUFFIXES) in said
    assert "files are expected" in complaint(*own, ",".join([str(tmp_path / "good.csv")] * 3))
    assert "files are expected" in complaint(*own, f"{tmp_path / 'empty'},{tmp_path / 'good.csv'}")
    for data in ("auto", "hub", "embedded"):
        assert "own data needs --data PATH" in complaint(*own, data)


@pytest.mark.usefixtures("_light_checkpoint")
@pytest.mark.parametrize("name", [n for n in TASKS.names() if n not in ("SST2", "RottenTomatoes")])
def test_a_task_without_embedded_data_says_which_have_some(complaint, name):
    said = complaint("prepare", "--env", f"KnowledgeSelect-{name}", "--data", "embedded")
    assert "only SST2, RottenTomatoes" in said


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--steps", "-5"), "at least 1"),
        (("--steps", "0"), "at least 1"),
        (("--num-envs", "0"), "at least 1"),
        (("--seed", "-1"), "the seed must lie between 0 and"),
        (("--steps", "5", "--eval-seeds", "0"), "at least"),
        (("--env-config.reward-every", "0"), "reward_every must be at least 1"),
        (("--agent", "dqn", "--env-config.action", "weights"), "takes no 'weights' actions"),
        (("--resume", "somewhere"), "takes no other option"),
        (("--resume=somewhere", "--seed=3"), "takes no other option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_option_out_of_range_is_a_line(complaint, options, said):
    agent = () if "--agent" in options else ("--agent", "ppo")
    assert said in complaint("train", *SST2, *TINY, *agent, *options)


def test_resume_alone_with_another_option_is_a_line(complaint):
    assert "takes no other option" in complaint("train", "--resume=somewhere", "--seed=3")


@pytest.mark.parametrize("seeds", ["0", "-1"])
def test_no_seed_to_evaluate_is_a_line(complaint, seeds):
    assert "at least one seed" in complaint("evaluate", *SST2, *TINY, "uniform", "--seeds", seeds)


@pytest.mark.parametrize(
    "options", [("--env",), ("--agent",), ("--resume",), ("--steps", "many"), ("--devise", "cpu"), ("--device", "gpu")]
)
def test_an_option_that_cannot_be_parsed_exits_with_2_and_writes_nothing(capsys, tmp_path, options):
    with pytest.raises(SystemExit) as exit_:
        main(["train", *SST2, "--agent", "ppo", *TINY, *options])
    assert exit_.value.code == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert options[0] in said.err
    assert not list((tmp_path / "work").iterdir())


def test_an_out_folder_that_holds_something_is_refused_and_left_as_it_is(capsys, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit) as exit_:
        main(["train", *SST2, "--agent", "ppo", *TINY, "--steps", "5", "--out", str(out)])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{out} is not empty; give another --out, or go on with: kd-gym train --resume {out}" in line
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]


def test_an_out_that_is_a_file_is_refused(complaint, tmp_path):
    (tmp_path / "out").write_text("a file")
    said = complaint("train", *SST2, "--agent", "ppo", *TINY, "--steps", "5", "--out", tmp_path / "out")
    assert str(tmp_path / "out") in said
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no run directory: it has no config.yaml"),
        ("", "is not of this version"),
        ("env: KnowledgeSelect-SST2-v0\n", "is not of this version"),
        ("- a\n- b\n", "is not of this version"),
        ("{: broken\n", "config.yaml"),
    ],
)
def test_what_is_no_run_cannot_be_resumed_or_evaluated(complaint, tmp_path, content, said):
    run = tmp_path / "run"
    assert "no run directory" in complaint("train", "--resume", run)
    run.mkdir()
    if content is not None:
        (run / "config.yaml").write_text(content)
    assert said in complaint("train", "--resume", run)
    assert said in complaint("evaluate", *SST2, *TINY, run)
    assert len(list(run.iterdir())) == (content is not None)


# ---------------------------------------------------------------------- envs


BAD_ACTIONS = {
    "weights": [
        np.array([1.01, 0, 0, 0]), np.array([-1.5, 0, 0, 0]), np.array([np.nan, 0, 0, 0]),
        np.array([0, np.inf, 0, 0]), np.zeros(3), np.zeros(5), np.zeros((4, 1)), 0.5,
    ],
    "multi": [
        np.array([0, 1, 2, 0]), np.array([0, -1, 0, 0]), np.array([1, 0, 0.5, 0]), np.array([np.nan, 0, 0, 0]),
        np.zeros(3, np.int8), np.zeros(5, np.int8), 1,
    ],
    "choice": [4, -1, np.int64(99), 1.7, np.nan, np.inf, np.zeros(4), np.array([1, 2])],
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_ACTIONS)
def test_an_action_outside_the_space_raises_and_changes_nothing(make_env, kind):
    env = make_env(action=kind)
    env.reset(seed=0)
    for action in BAD_ACTIONS[kind]:
        with pytest.raises(KDGymError, match="action"):
            env.step(action)
    assert env.episodes.info(0)["updates"] == 0
    env.step(env.action_space.sample())
    assert env.episodes.info(0)["updates"] > 0


@pytest.mark.parametrize("kind", BAD_ACTIONS)
def test_an_action_outside_the_space_raises_in_the_vector_env_too(kind):
    env = gym.make_vec("KnowledgeSelect-SST2-v0", num_envs=2, backend="tiny", action=kind).unwrapped
    env.reset(seed=0)
    fine = env.single_action_space.sample()
    for action in BAD_ACTIONS[kind]:
        if np.shape(action) != np.shape(fine):
            continue
        with pytest.raises(KDGymError, match="action"):
            env.step(np.stack([np.asarray(fine, float), np.asarray(action, float)]))
    for count in (1, 3):
        with pytest.raises(KDGymError, match=f"{count} actions were given for 2 students"):
            env.step(np.stack([fine] * count))
    assert env.episodes.info(0)["updates"] == 0


@pytest.mark.parametrize("seeds", [[], [1], [1, 2, 3, 4]])
def test_a_wrong_number_of_seeds_raises(seeds):
    env = gym.make_vec("KnowledgeSelect-SST2-v0", num_envs=3, backend="tiny").unwrapped
    with pytest.raises(KDGymError, match=f"{len(seeds)} seeds were given for 3 students"):
        env.reset(seed=seeds)
    env.reset(seed=[1, 2, 3])


def test_a_step_before_reset_or_after_the_end_raises(make_env):
    env = make_env()
    with pytest.raises(KDGymError, match="call reset"):
        env.step(env.action_space.sample())
    env.reset(seed=0)
    while not env.step(env.action_space.sample())[2]:
        pass
    with pytest.raises(KDGymError, match="call reset"):
        env.step(env.action_space.sample())


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"action": "weight"}, "weights"),
        ({"observation": "vectors"}, "vector"),
        ({"reward": "acuracy"}, "accuracy"),
        ({"reward_every": 0}, "at least 1"),
        ({"context": "heldout"}, "held-out"),
        ({"device": "gpu"}, "cuda"),
    ],
)
def test_a_wrong_argument_of_an_env_raises_with_the_valid_ones(make_env, kwargs, said):
    with pytest.raises(KDGymError, match=said):
        make_env(**kwargs)
    with pytest.raises(KDGymError, match=said):
        gym.make_vec("KnowledgeSelect-SST2-v0", num_envs=2, backend="tiny", **kwargs)


def test_no_student_at_all_raises():
    with pytest.raises(KDGymError, match="at least 1"):
        gym.make_vec("KnowledgeSelect-SST2-v0", num_envs=0, backend="tiny")


# ---------------------------------------------------------------------- whole processes


def command(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KD_GYM_CACHE": str(tmp_path / "cache"), "KD_GYM_DATA": ""}
    done = subprocess.run(
        [sys.executable, "-m", "kd_gym", *arguments],
        cwd=tmp_path / "work",
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stdout
    assert not list((tmp_path / "work").iterdir())
    assert not written(tmp_path / "cache")
    return done


def test_a_process_with_a_misspelt_env_prints_one_line_and_exits_with_2(tmp_path):
    done = command(tmp_path, "train", "--env", "KnowledgeSelect-SST", "--agent", "ppo")
    assert done.stderr == "kd-gym: unknown env 'KnowledgeSelect-SST': did you mean 'KnowledgeSelect-SST2'?\n"
    assert done.stdout == ""


@pytest.mark.slow
def test_a_process_with_a_misspelt_agent_prints_one_line_and_exits_with_2(tmp_path):
    done = command(tmp_path, "train", *SST2, "--agent", "pppo")
    assert done.stderr == "kd-gym: unknown agent 'pppo': did you mean 'ppo'?\n"


@pytest.mark.slow
def test_a_process_with_a_bad_file_prints_one_line_and_exits_with_2(tmp_path):
    try:
        embedded.minilm()
    except KDGymError as error:
        pytest.skip(str(error))
    (tmp_path / "train.csv").write_bytes(text_file(good()).replace(b"kis 7,", b"kis \xe9,"))
    done = command(tmp_path, "train", "--env", "KnowledgeSelect", "--agent", "ppo", "--data", str(tmp_path))
    assert done.stderr.endswith("train.csv, line 9: not UTF-8 text; save the file as UTF-8\n")
