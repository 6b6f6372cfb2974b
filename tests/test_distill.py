"""`kd-gym distill`: a student to take home, read by programs that know nothing of kd-gym."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from kd_gym.errors import KDGymError
from kd_gym.experiments import distill as module
from kd_gym.experiments.distill import distill
from kd_gym.experiments.score import measure
from kd_gym.experiments.setup import EVALUATION_SEEDS, EnvSpec
from kd_gym.experiments.train import train

TINY = EnvSpec("KnowledgeSelect-SST2", backend="tiny")
COMMAND = (sys.executable, "-m", "kd_gym", "distill", "--backend", "tiny", "--env", "KnowledgeSelect-SST2")

# what a stranger would write
READER = """
import json, sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
folder, texts = sys.argv[1], json.load(sys.stdin)
classify = pipeline("text-classification", model=folder)
said = [answer["label"] for answer in classify(texts)]
model = AutoModelForSequenceClassification.from_pretrained(folder)
assert "kd_gym" not in sys.modules
json.dump({"said": said, "labels": list(model.config.id2label.values())}, sys.stdout)
"""


def rows_of(spec):
    """Texts and label names of `report`."""
    data = spec.lab().data
    rows = data.rows["report"]
    return [text for (text,) in rows.texts], [data.task.labels[label] for label in rows.labels]


def test_the_checkpoint_scores_elsewhere_what_its_card_says(tmp_path):
    found = distill("uniform", TINY, tmp_path / "out", budget=60)
    texts, labels = rows_of(TINY)
    answer = subprocess.run(
        [sys.executable, "-c", READER, str(found.folder)], input=json.dumps(texts), capture_output=True, text=True,
        cwd=tmp_path, check=True,
    )  # fmt: skip
    told = json.loads(answer.stdout)
    assert told["labels"] == ["negative", "positive"]
    score = np.mean([a == b for a, b in zip(told["said"], labels, strict=True)])
    card = (found.folder / "README.md").read_text()
    (stated,) = re.findall(r"^\| this student \| ([\d.]+) \|$", card, re.MULTILINE)
    assert float(stated) == pytest.approx(score, abs=1e-4) == found.episode.scores["accuracy"]
    about = json.loads((found.folder / "distillation.json").read_text())
    assert about["scores"]["accuracy"] == found.episode.scores["accuracy"]
    assert about["updates"] == 60


def test_the_command_writes_a_card_with_itself_on_it(tmp_path):
    command = [*COMMAND, "--controller", "static:1,1,0,0", "--out", "student", "--budget", "20", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "checkpoint and card: student" in done.stdout
    card = (tmp_path / "student" / "README.md").read_text()
    assert "`kd-gym distill " + " ".join(command[4:]) + "`" in card
    assert "seed 3, 20 updates" in card
    assert str(tmp_path) not in card


def test_a_policy_trained_on_short_episodes_makes_as_many_decisions_on_longer_ones(tmp_path):
    run = train("KnowledgeSelect-SST2", "a2c", 40, 2, backend="tiny", out=tmp_path / "run", eval_seeds=1).folder
    found = distill(str(run), TINY, tmp_path / "out", budget=100)
    assert len(found.episode.actions) == TINY.family.decisions
    assert json.loads((tmp_path / "out" / "distillation.json").read_text())["updates"] == 100


def test_select_keeps_the_best_student_of_all_decisions(tmp_path, monkeypatch):
    seen = []
    honest = module.measure

    def told(lab, process, split):
        found = honest(lab, process, split)
        seen.append((found[0]["accuracy"], int(process.update[0])))
        return found

    monkeypatch.setattr(module, "measure", told)
    found = distill("single:relation", TINY, tmp_path / "out", budget=100, seed=1, select=True)
    best = max(score for score, _ in seen)
    assert len(seen) == TINY.family.decisions
    assert found.chosen == (next(update for score, update in seen if score == best), best)
    kept = load_file(tmp_path / "out" / "model.safetensors")
    last = distill("single:relation", TINY, tmp_path / "last", budget=100, seed=1)
    other = load_file(last.folder / "model.safetensors")
    assert any(not np.array_equal(kept[name], other[name]) for name in kept) == (found.chosen[0] < 100)


def test_the_kept_student_is_the_one_that_is_scored_and_written(tmp_path):
    spec = TINY.with_config(learning_rate=0.03)  # it goes up and down
    found = distill("uniform", spec, tmp_path / "out", budget=60, seed=2, select=True)
    env = spec.with_config(horizon=60).make()
    env.reset(seed=EVALUATION_SEEDS + 2)
    while int(env.episodes.process.update[0]) < found.chosen[0]:
        env.step(np.zeros(4, np.float32))
    assert measure(env.lab, env.episodes.process, "report")[0] == found.episode.scores
    assert measure(env.lab, env.episodes.process, "select")[0]["accuracy"] == found.chosen[1]


def test_onnx_gives_the_logits_of_the_checkpoint(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = distill("uniform", TINY, tmp_path / "out", budget=20, onnx=True).folder
    texts = rows_of(TINY)[0][:7]
    inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    session = runtime.InferenceSession(str(folder / "model.onnx"))
    (found,) = session.run(None, {i.name: inputs[i.name].numpy() for i in session.get_inputs()})
    expected = AutoModelForSequenceClassification.from_pretrained(folder)(**inputs).logits.detach().numpy()
    assert np.allclose(found, expected, atol=1e-5)


def test_a_folder_that_is_not_empty_stays_as_it_is(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(KDGymError, match="is not empty; give another --out"):
        distill("uniform", TINY, tmp_path, budget=20)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_student_that_diverges_leaves_nothing(tmp_path):
    with pytest.raises(KDGymError, match="no student came out of this: the student's loss or gradient is not finite"):
        distill("uniform", TINY.with_config(learning_rate=1e30), tmp_path / "out", budget=20)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [8192, 2048, 300])  # of a file: weights, tokenizer, or all do not fit
def test_a_full_disk_leaves_no_checkpoint_that_looks_whole(tmp_path, limit):
    def small():  # files end there, as they do on a disk that is full
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [*COMMAND, "--controller", "uniform", "--out", str(tmp_path / "out"), "--budget", "20"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=small, env=environment, check=False)
    assert done.returncode == 2, done.stderr
    assert f"kd-gym: the student could not be written to {tmp_path / 'out'}: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("out")]


def test_a_tokenizer_that_cannot_be_written_leaves_nothing_either(tmp_path, monkeypatch):
    def full(folder):
        raise Exception("No space left on device (os error 28)")  # the tokenizers' own kind

    monkeypatch.setattr(TINY.lab().data.tokenizer, "save_pretrained", full)
    with pytest.raises(KDGymError, match=r"could not be written to .*: No space left on device"):
        distill("uniform", TINY, tmp_path / "out", budget=20)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_outlives_an_onnx_file_that_could_not_be_made(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(module, "export_onnx", lambda *args: 1 / 0)
    with pytest.raises(KDGymError, match=r"the checkpoint is in .*out, but model.onnx could not be made"):
        distill("uniform", TINY, tmp_path / "out", budget=20, onnx=True)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_place_that_cannot_be_written_to_is_found_out_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(module, "prepare", lambda *args: pytest.fail("it began"))
    with pytest.raises(KDGymError, match=r"nothing can be written to .*file/out: Not a directory"):
        distill("uniform", TINY, tmp_path / "file" / "out", budget=20)


def test_the_current_folder_and_a_link_will_do(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    distill("uniform", TINY, tmp_path / "link", budget=20)
    assert (tmp_path / "real" / "config.json").exists()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    distill("uniform", TINY, Path(), budget=20)
    assert sorted(p.name for p in Path().iterdir())[:3] == ["README.md", "config.json", "distillation.json"]


def test_a_horizon_is_a_budget(tmp_path):
    found = distill("uniform", TINY.with_config(horizon=25), tmp_path / "out")
    assert json.loads((found.folder / "distillation.json").read_text())["updates"] == 25
    with pytest.raises(KDGymError, match="the budget is the horizon: give one of them"):
        distill("uniform", TINY.with_config(horizon=25), tmp_path / "other", budget=25)
    with pytest.raises(KDGymError, match="the seed must lie between 0 and"):
        distill("uniform", TINY, tmp_path / "other", seed=-1)
