"""The installed clients of the hub against a stand-in for it; most are processes of their own."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import huggingface_hub
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForPreTraining

from kd_gym.backend.tiny import tiny_data, tiny_tokenizer
from kd_gym.envs.lab import checkpoint_folder
from kd_gym.envs.recipes import BERT_BASE
from kd_gym.errors import KDGymError
from kd_gym.tasks.readers import Rows
from kd_gym.tasks.task import TASKS

COMMIT = "c0ffee" * 6 + "c0de"
URL = re.compile(r"/(?:api/)?(?:models/|datasets/)?([^/]+/[^/]+)(?:/(resolve|revision|tree)/[^/]+/?(.*))?")
NEEDED = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


class Answer(BaseHTTPRequestHandler):
    """Files of the repositories under `server.root`, and what the clients ask about them first."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path, _, query = unquote(self.path).partition("?")
        found = URL.fullmatch(path)
        repository = self.server.root / (found[1] if found else "nobody/nothing")
        if not repository.is_dir():
            return self.reply(404, error="RepoNotFound")
        inside = repository / (found[3] or "")
        if found[2] not in ("resolve", "tree"):
            return self.reply(200, json.dumps({"id": found[1], "sha": COMMIT}).encode())
        if not (inside.is_file() if found[2] == "resolve" else inside.is_dir()):
            return self.reply(404, error="EntryNotFound")
        if found[2] == "resolve":
            return self.reply(200, inside.read_bytes())
        listed = [
            {
                "type": "file" if path.is_file() else "directory",
                "path": path.relative_to(repository).as_posix(),
                "size": path.stat().st_size,
                "oid": COMMIT,
            }
            for path in inside.glob("**/*" if "recursive=true" in query else "*")
        ]
        return self.reply(200, json.dumps(listed).encode())

    def do_HEAD(self):
        self.do_GET()

    def reply(self, status, body=b"", error=""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class Hub(ThreadingHTTPServer):
    """The stand-in, with an empty cache for its clients."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Answer)
        self.root, self.home, self.kept = folder / "hub", folder / "hf", folder / "kd"
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def run(self, program, *arguments):
        """What a new process prints that knows no other hub and no other cache."""
        env = {k: v for k, v in os.environ.items() if not re.search("^HF_|^KD_GYM_|proxy", k, re.IGNORECASE)}
        env |= {"HF_ENDPOINT": self.url, "HF_HOME": str(self.home), "KD_GYM_CACHE": str(self.kept)}
        env |= {"HF_UPDATE_DOWNLOAD_COUNTS": "0"}  # downloads are counted elsewhere than at the hub
        env |= {"OMP_NUM_THREADS": "1"}  # tiny products are fastest so
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def visit(self, monkeypatch):
        """Make this process a client too."""
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", self.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(self.home / "hub"))

    def leave(self):
        self.shutdown()
        self.server_close()

    def add_tasks(self, *names):
        """Made-up rows as the hub has them: classes by name, row numbers, and a test split without labels."""
        configs, served = [], {}
        for task in map(TASKS.get, names):
            (repository, config), rows = task.hub, tiny_data(task.name).rows
            train, validation = rows["train"].take(range(120)), rows["report"]
            test = Rows(rows["select"].texts, [-1] * len(rows["select"]))
            splits = {"train": train, task.validation: validation, "test": test}
            kinds = dict.fromkeys(task.text, Value("string"))
            kinds |= {"label": ClassLabel(names=list(task.labels)), "idx": Value("int32")}
            folder = self.root / repository / (config or "")
            folder.mkdir(parents=True)
            for split, part in splits.items():
                columns = [*map(list, zip(*part.texts, strict=True)), part.labels, list(range(len(part)))]
                file = folder / (f"{split}-00000-of-00001.parquet" if config else f"{split}.parquet")
                Dataset.from_dict(dict(zip(kinds, columns, strict=True)), Features(kinds)).to_parquet(file)
            if config:
                files = [{"split": split, "path": f"{config}/{split}-*"} for split in splits]
                configs.append({"config_name": config, "data_files": files})
            tables = [[list(map(list, part.texts)), part.labels] for part in (train, validation)]
            served[task.name] = [f"hub:{repository}", tables]
        (self.root / "nyu-mll/glue/README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n# GLUE\n")
        return served

    def add_checkpoint(self, name, hidden):
        """A pretrained BERT of 12 layers as its publishers put it there: old names, and the same for other programs."""
        folder = self.root / name
        config = BertConfig(vocab_size=len(tiny_tokenizer()), hidden_size=hidden, intermediate_size=4 * hidden)
        BertForPreTraining(config).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        found = load_file(folder / "model.safetensors")
        old = {k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v for k, v in found.items()}
        save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
        for other in ("README.md", "pytorch_model.bin", "onnx/model.onnx"):
            (folder / other).parent.mkdir(exist_ok=True)
            (folder / other).write_text("not asked for")


@pytest.fixture
def hub(tmp_path):
    server = Hub(tmp_path)
    yield server
    server.leave()


LOAD = """
import json, sys
from kd_gym.tasks.sources import load_source
from kd_gym.tasks.task import TASKS
found = [{name: load_source(name, data) for name in TASKS.names()} for data in sys.argv[1:]]
print(json.dumps([
    {name: [s.name, [[rows.texts, rows.labels] for rows in (s.train, s.validation)]] for name, s in sources.items()}
    for sources in found
]))
"""


def test_every_task_comes_from_the_hub_and_without_it_from_its_cache(hub):
    served = hub.add_tasks(*TASKS.names())
    assert hub.run(LOAD, "hub") == [served]
    hub.leave()
    assert hub.run(LOAD, "hub", "auto") == [served, served], "before the embedded corpus"


# The recipe of a `-Base` id, but narrower and with fewer updates in a decision: 100 of a student 768 wide take minutes.
STEP = """
import dataclasses, json
import gymnasium as gym
import torch
from kd_gym.backend.encoder import parameter_shapes
from kd_gym.backend.teacher import load_teacher
from kd_gym.envs import knowledge_select
from kd_gym.envs.lab import checkpoint_folder
whole = knowledge_select.recipe_of
knowledge_select.recipe_of = lambda *a, **k: dataclasses.replace(whole(*a, **k), hidden=48, updates=10)
env = gym.make("KnowledgeSelect-RTE-Base-v0", data="hub", device="cpu").unwrapped
env.reset(seed=0)
reward = env.step(env.action_space.low)[1]
lab = env.lab
teacher = load_teacher(lab.teacher.folder, torch.device("cpu")).bert.state_dict()
pairs = {"norm.weight": "embeddings.LayerNorm.weight", "5.norm2.bias": "encoder.layer.11.output.LayerNorm.bias"}
print(json.dumps({
    "checkpoint": str(checkpoint_folder(lab.recipe.checkpoint)),
    "source": lab.data.source,
    "drawn": sorted(set(parameter_shapes(lab.init.arch)) - set(lab.init.shared)),
    "taken": all(lab.init.shared[ours].equal(teacher[theirs]) for ours, theirs in pairs.items()),
    "reward": reward,
}))
"""


def test_a_base_id_is_played_from_the_hub_and_without_it_its_checkpoint_is_in_the_cache(hub, monkeypatch):
    hub.add_tasks("RTE")
    hub.add_checkpoint(BERT_BASE, hidden=48)
    told = hub.run(STEP)
    assert told["source"] == "hub:nyu-mll/glue"
    assert abs(told["reward"]) < 1
    assert told["drawn"] == ["classifier.bias", "classifier.weight"], "the rest is the teacher's"
    assert told["taken"]
    folder = Path(told["checkpoint"])
    assert sorted(path.name for path in folder.iterdir()) == NEEDED, "and none of the other programs'"
    hub.leave()
    hub.visit(monkeypatch)
    assert checkpoint_folder(BERT_BASE) == folder


def test_a_hub_that_takes_calls_and_answers_none_is_not_waited_for(hub, monkeypatch):
    def silence(self):
        time.sleep(15)
        self.close_connection = True

    monkeypatch.setattr(Answer, "do_GET", silence)
    hub.visit(monkeypatch)
    began = time.perf_counter()
    with pytest.raises(KDGymError, match=r"the hub did not give the model someone/tiny-bert .*; give the network"):
        checkpoint_folder("someone/tiny-bert")
    assert time.perf_counter() - began < 12


@pytest.mark.parametrize("lost", NEEDED[:3])
def test_a_part_of_a_checkpoint_is_not_taken_for_the_whole(hub, lost):
    """As other programs leave it in the cache: a tokenizer without files would come up empty, and say nothing."""
    hub.add_checkpoint("someone/tiny-bert", hidden=24)
    folder = hub.root / "someone/tiny-bert"
    assert checkpoint_folder(str(folder)) == folder
    (folder / lost).unlink()
    with pytest.raises(KDGymError, match=f"tiny-bert: no {lost}.* here; save or fetch"):
        checkpoint_folder(str(folder))
