"""Ids on real text with the real checkpoint; the teacher is tuned for a few updates, so the scores mean nothing."""

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env
from pyarrow import parquet
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kd_gym import KDGymError
from kd_gym.backend.teacher import fine_tuned
from kd_gym.envs import lab
from kd_gym.envs.knowledge_select import ActionKind
from kd_gym.experiments.score import teacher_scores
from kd_gym.tasks import embedded

pytestmark = pytest.mark.slow


@pytest.fixture
def few_rows(tmp_path, monkeypatch):
    """A data folder with the first rows of a task's files."""

    def make(task: str, rows: int = 1200) -> None:
        folders = [Path(f) / task.lower() for f in os.environ.get("KD_GYM_DATA", "").split(os.pathsep) if f]
        given = next((f for f in folders if (f / "train.parquet").exists()), None)
        if given is None:
            pytest.skip(f"KD_GYM_DATA has no files of {task}")
        try:
            embedded.minilm()
        except KDGymError:
            pytest.skip("the embedded checkpoint is not installed")
        (tmp_path / task.lower()).mkdir()
        for name in ("train", "validation"):
            table = parquet.read_table(given / f"{name}.parquet").slice(0, rows if name == "train" else 100)
            parquet.write_table(table, tmp_path / task.lower() / f"{name}.parquet")
        monkeypatch.setenv("KD_GYM_DATA", str(tmp_path))
        monkeypatch.setattr(lab, "fine_tuned", lambda spec, *rest: fine_tuned(replace(spec, updates=4), *rest))
        lab.open_lab.cache_clear()

    yield make
    lab.open_lab.cache_clear()


@pytest.mark.parametrize("task", ["SST2", "MRPC", "RTE"])
def test_gymnasiums_checker_passes_on_real_data(task, few_rows):
    few_rows(task)
    for action in ActionKind.__args__:
        env = gym.make(f"KnowledgeSelect-{task}-v0", action=action, device="cpu").unwrapped
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env(env, skip_render_check=True)
    assert env.lab.data.source == f"files:{task.lower()}/train.parquet"
    assert set(teacher_scores(env.lab.teacher, "select", env.lab.device)) == set(env.lab.data.task.metrics)
    # a second lab takes the teacher, its store and the word states from the cache
    before = sorted(Path(os.environ["KD_GYM_CACHE"]).rglob("*.safetensors"))
    kept = env.lab.teacher.hash
    lab.open_lab.cache_clear()
    again = gym.make(f"KnowledgeSelect-{task}-v0", device="cpu").unwrapped
    assert again.lab.teacher.hash == kept
    assert again.lab.init.shared["word"].equal(env.lab.init.shared["word"])
    assert sorted(Path(os.environ["KD_GYM_CACHE"]).rglob("*.safetensors")) == before
    assert not list(Path(os.environ["KD_GYM_CACHE"]).rglob("*.partial"))


def test_teachers_of_ones_own_are_checked_stored_and_believed(few_rows, tmp_path):
    few_rows("SST2")
    env = gym.make("KnowledgeSelect-SST2-v0", device="cpu").unwrapped
    tuned, file = env.lab.teacher.folder, tmp_path / "teachers.json"

    def make(*teachers, env="TeacherWeight-SST2-v0", **options):
        file.write_text(json.dumps(teachers))
        return gym.make(env, device="cpu", teachers=str(file), **options).unwrapped

    again = {"name": "again", "checkpoint": str(tuned), "epochs": 0}
    both = make({"name": "first"}, again)
    first, second = both.lab.teachers()
    assert first.store.logits.equal(second.store.logits)
    both.reset(seed=0)
    both.step(both.action_space.sample())
    alone = make(again, env="KnowledgeSelect-SST2-v0", context="wrong-teacher")
    alone.reset(seed=0)
    assert alone.lab.init.shared["word"].equal(env.lab.init.shared["word"])

    model = AutoModelForSequenceClassification.from_pretrained(tuned, num_labels=3, ignore_mismatched_sizes=True)
    for name, labels, said in (
        ("three", None, "has 3 classes, task SST2 has 2"),
        ("turned", ("positive", "negative"), "has its classes in another order"),
    ):
        model.save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(tuned).save_pretrained(tmp_path / name)
        if labels:
            config = json.loads((tmp_path / name / "config.json").read_text())
            config |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
            (tmp_path / name / "config.json").write_text(json.dumps(config))
        before = sorted(Path(os.environ["KD_GYM_CACHE"]).rglob("*"))
        with pytest.raises(KDGymError) as caught:
            make({"name": "first"}, {"name": name, "checkpoint": str(tmp_path / name), "epochs": 0})
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert sorted(Path(os.environ["KD_GYM_CACHE"]).rglob("*")) == before, "nothing half-done"
