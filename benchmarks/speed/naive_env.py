"""An env as people write it by hand: what kd-gym's are held to."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForSequenceClassification

from kd_gym.backend.knowledge import matched_layers
from kd_gym.backend.teacher import load_teacher, teacher_inputs
from kd_gym.envs.lab import Lab


class NaiveEnv(gym.Env[np.ndarray, np.ndarray]):
    """What people write: `transformers` modules, the teacher in the loop, everything padded to 128.

    The decisions, batches, knowledge types and rows of the reward are those of `KnowledgeSelect`; these rows are
    tokenised again for each reward. Evaluation is batched and without gradients, and training rows come tokenised.
    """

    def __init__(self, lab: Lab) -> None:
        data, recipe = lab.data, lab.recipe
        self.device, self.recipe, self.tokenizer, self.vocabulary = lab.device, recipe, data.tokenizer, data.vocabulary
        self.train = data.split("train").to(self.device)
        kept = data.rows["reward"].take(range(recipe.reward_rows))
        self.texts, self.labels = [text for (text,) in kept.texts], torch.tensor(kept.labels, device=self.device)
        assert lab.teacher.folder is not None
        self.teacher = load_teacher(lab.teacher.folder, self.device).eval()
        of = self.teacher.config
        self.layers = [layer + 1 for layer in matched_layers(recipe.layers, of.num_hidden_layers)]
        self.config = BertConfig(
            vocab_size=of.vocab_size, num_hidden_layers=recipe.layers, hidden_size=recipe.hidden,
            num_attention_heads=recipe.heads, intermediate_size=4 * recipe.hidden, num_labels=data.classes,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        kinds = len(recipe.process.knowledge)
        self.action_space = gym.spaces.Box(-1, 1, (kinds,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (kinds + 2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """A fresh student."""
        super().reset(seed=seed)
        self.student = BertForSequenceClassification(self.config).to(self.device)
        widths = self.recipe.hidden, self.teacher.config.hidden_size
        self.maps = torch.nn.ModuleList(torch.nn.Linear(*widths, bias=False) for _ in self.layers).to(self.device)
        self.parameters = [*self.student.parameters(), *self.maps.parameters()]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=self.recipe.process.learning_rate)
        self.done, self.loss = 0, self._evaluate()
        return np.zeros(self.observation_space.shape, np.float32), {}

    @torch.no_grad()
    def _evaluate(self) -> float:
        """Cross-entropy on the rows of the reward."""
        self.student.eval()
        inputs = self.tokenizer(
            self.texts, padding="max_length", truncation=True, max_length=128, return_tensors="pt"
        ).to(self.device)
        parts = zip(*(inputs[name].split(64) for name in ("input_ids", "attention_mask")), strict=True)
        logits = torch.cat([self.student(input_ids=ids, attention_mask=mask).logits for ids, mask in parts])
        return float(F.cross_entropy(logits, self.labels))

    def _losses(self) -> torch.Tensor:
        """Labels, soft targets, features and relations on a random batch."""
        process = self.recipe.process
        rows = torch.from_numpy(self.np_random.integers(len(self.train), size=process.batch)).to(self.device)
        tokens = self.train.batch(rows, 128)
        inputs = teacher_inputs(tokens, self.vocabulary.to(self.device), self.teacher.config)
        with torch.no_grad():
            said = self.teacher(**inputs, output_hidden_states=True)
        own = self.student(**inputs, output_hidden_states=True)
        soft = (said.logits / process.tau).softmax(-1)
        response = F.kl_div((own.logits / process.tau).log_softmax(-1), soft, reduction="batchmean")
        theirs = [F.normalize(said.hidden_states[i][:, 0], dim=-1) for i in self.layers]
        cls = [state[:, 0] for state in own.hidden_states[1:]]
        mapped = [F.normalize(linear(state), dim=-1) for linear, state in zip(self.maps, cls, strict=True)]
        apart = [(a - b).square().sum(-1).mean() for a, b in zip(mapped, theirs, strict=True)]
        mine = F.normalize(cls[-1], dim=-1)
        relation = F.mse_loss(mine @ mine.T, theirs[-1] @ theirs[-1].T)
        hard = F.cross_entropy(own.logits, self.train.labels[rows])
        return torch.stack([hard, process.tau**2 * response, torch.stack(apart).mean(), relation])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One decision."""
        raw = torch.from_numpy(action + 1).to(self.device)
        weights = raw / raw.sum().clamp_min(1e-6)
        self.student.train()
        for _ in range(self.recipe.updates):
            losses = self._losses()
            (weights * losses).sum().backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.process.clip)
            self.optimiser.step()
            self.optimiser.zero_grad()
        before, self.loss = self.loss, self._evaluate()
        self.done += self.recipe.updates
        seen = [*losses.tolist(), self.loss, self.done / self.recipe.process.horizon]
        return np.array(seen, np.float32), before - self.loss, self.done >= self.recipe.process.horizon, False, {}
