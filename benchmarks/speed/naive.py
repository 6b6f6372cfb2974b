"""LGTM, IKD and MetaDistil with `transformers` modules, as one writes them from their papers: what kd-gym is held to.

Each makes the update that kd-gym's controller of the same name makes, by other means (without weight decay, which is
off on both sides; LGTM's does not clip, as its released code does not):

- LGTM is the released code's algorithm: deep copies of student and optimiser for the look-ahead, a pass of the teacher
  forward and back for the auxiliary loss and for either side of the finite differences, another forward for the
  student's own step. Here and in kd-gym's faithful mode dropout is on where the released code trains.
- IKD and MetaDistil unroll the student's update: its gradient is taken with a graph, the moved student is called with
  `torch.func.functional_call`, and autograd goes back through all of it to the teacher. IKD has no released code;
  MetaDistil's unrolls likewise. The student's attention is eager, since torch's fused one has no second derivative on
  a CPU; the teacher's is fused.

AdamW is torch's default, not its fused one, as in the released code.
"""

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from bench import soft
from kd_gym.backend.encoder import Architecture
from kd_gym.backend.knowledge import matched_layers
from kd_gym.tasks import embedded
from kd_gym.tasks.data import TaskData
from kd_gym.tasks.tokens import TokenSplit

Inputs = dict[str, Tensor]
RATE, CLIP = 1e-4, 1.0  # the student's learning rate; the largest norm of gradients that are clipped


def gradients(loss: Tensor, module: nn.Module, graph: bool = False) -> list[Tensor]:
    """The gradient by every parameter of a module, zeros where there is none."""
    return list(torch.autograd.grad(loss, list(module.parameters()), create_graph=graph, materialize_grads=True))


def step(module: nn.Module, optimiser: torch.optim.Optimizer, found: Iterable[Tensor], clip: bool) -> None:
    """Move a module's parameters along its gradients."""
    for p, gradient in zip(module.parameters(), found, strict=True):
        p.grad = gradient.detach()
    if clip:
        clip_grad_norm_(module.parameters(), CLIP)
    optimiser.step()
    optimiser.zero_grad()


class Naive:
    """A teacher, MiniLM-L6, and a student, with an optimiser for each.

    `update` trains both on rows of `train` and rows of `reward`, padded to the longest of them.
    """

    teacher_rate = 1e-5
    dropout = 0.0
    attention = "eager"  # of the student

    def __init__(self, data: TaskData, arch: Architecture, device: torch.device) -> None:
        drop = {"hidden_dropout_prob": self.dropout, "attention_probs_dropout_prob": self.dropout}
        self.teacher: nn.Module = AutoModelForSequenceClassification.from_pretrained(
            embedded.minilm(), num_labels=data.classes, dtype=torch.float32, **drop
        ).to(device)
        config = BertConfig(
            vocab_size=len(data.tokenizer), num_hidden_layers=arch.layers, hidden_size=arch.hidden,
            num_attention_heads=arch.heads, intermediate_size=arch.intermediate, num_labels=data.classes,
            attn_implementation=self.attention, **drop,
        )  # fmt: skip
        self.student = self.student_of(BertForSequenceClassification(config), arch).to(device)
        self.student_adam = torch.optim.AdamW(self.student.parameters(), lr=RATE, weight_decay=0.0)
        self.teacher_adam = torch.optim.AdamW(self.teacher.parameters(), lr=self.teacher_rate, weight_decay=0.0)
        self.vocabulary = data.vocabulary.to(device)
        self.train, self.held = (data.split(name).to(device) for name in ("train", "reward"))
        self.teacher.train()
        self.student.train()

    def student_of(self, bert: BertForSequenceClassification, arch: Architecture) -> nn.Module:
        """The student that this algorithm trains."""
        return bert

    def inputs(self, split: TokenSplit, rows: Tensor) -> tuple[Inputs, Tensor]:
        """What the modules take of these rows, and their labels."""
        tokens = split.batch(rows)
        return {"input_ids": self.vocabulary[tokens.ids], "attention_mask": tokens.mask.long()}, split.labels[rows]

    def update(self, rows: Tensor, held: Tensor) -> None:
        """One update of teacher and student."""
        self.train_on(*self.inputs(self.train, rows), *self.inputs(self.held, held))

    def train_on(self, x: Inputs, y: Tensor, xe: Inputs, ye: Tensor) -> None:
        """The same on inputs and labels of both batches."""
        raise NotImplementedError


class LGTM(Naive):
    """The released algorithm (Ren et al. 2023): four passes of the teacher forward and three back."""

    teacher_rate = 3e-5
    dropout = 0.1
    attention = "sdpa"
    imitation, radius = 0.4, 0.01

    def __init__(self, data: TaskData, arch: Architecture, device: torch.device) -> None:
        super().__init__(data, arch, device)
        for model in (self.teacher, self.student):
            nn.init.zeros_(model.classifier.weight)
            nn.init.zeros_(model.classifier.bias)

    def auxiliary(self, own: Tensor, said: Tensor, y: Tensor) -> Tensor:
        """The teacher's loss."""
        return self.imitation * soft(own.detach(), said) + (1 - self.imitation) * F.cross_entropy(said, y)

    def side(self, x: Inputs, y: Tensor) -> list[Tensor]:
        """The gradient of the teacher's loss on one side of the finite differences."""
        with torch.no_grad():
            own = self.student(**x).logits
        return gradients(self.auxiliary(own, self.teacher(**x).logits, y), self.teacher)

    def move(self, direction: list[Tensor], length: float | Tensor) -> None:
        """Move the student in place."""
        with torch.no_grad():
            for p, v in zip(self.student.parameters(), direction, strict=True):
                p += length * v

    def teacher_gradient(self, x: Inputs, y: Tensor, xe: Inputs, ye: Tensor) -> list[Tensor]:
        """The auxiliary gradient less the influence."""
        ahead = copy.deepcopy(self.student)
        adam = torch.optim.AdamW(ahead.parameters(), lr=RATE, weight_decay=0.0)
        adam.load_state_dict(copy.deepcopy(self.student_adam.state_dict()))
        own, said = ahead(**x).logits, self.teacher(**x).logits
        step(ahead, adam, gradients(soft(said.detach(), own), ahead), clip=False)
        keeps = gradients(self.auxiliary(own, said, y), self.teacher)
        v = gradients(F.cross_entropy(ahead(**xe).logits, ye), ahead)
        eps = self.radius / torch.cat([part.flatten() for part in v]).norm()
        self.teacher.eval()
        self.student.eval()
        self.move(v, eps)
        there = self.side(x, y)
        self.move(v, -2 * eps)
        back = self.side(x, y)
        self.move(v, eps)
        scale = self.teacher_rate / (2 * eps)
        return [a - scale * (plus - minus) for a, plus, minus in zip(keeps, there, back, strict=True)]

    def train_on(self, x: Inputs, y: Tensor, xe: Inputs, ye: Tensor) -> None:
        """The teacher's step, and the student's own with the new teacher, without dropout."""
        step(self.teacher, self.teacher_adam, self.teacher_gradient(x, y, xe, ye), clip=False)
        with torch.no_grad():
            said = self.teacher(**x).logits
        step(self.student, self.student_adam, gradients(soft(said, self.student(**x).logits), self.student), clip=False)
        self.teacher.train()
        self.student.train()


class IKD(Naive):
    """Course and exam (Liu et al. 2021): the student's AdamW step unrolled, and the exam's gradient back through it.

    The course is paid for once: the gradient of the unrolled step is the student's own. As in kd-gym the step's
    preconditioner is held constant, and the exam's gradient is brought to the size of the teacher's own on the exam.
    """

    tau, half, feedback = 4.0, 0.5, 0.5

    def ahead(self, found: list[Tensor]) -> dict[str, Tensor]:
        """The student's parameters after an AdamW step along gradients, a function of them."""
        named = dict(self.student.named_parameters())
        norm = torch.nn.utils.get_total_norm([g.detach() for g in found])
        scale = (CLIP / norm).clamp(max=1)
        moved = {}
        for (name, p), gradient in zip(named.items(), found, strict=True):
            state = self.student_adam.state[p]
            number = int(state.get("step", 0)) + 1
            mean = 0.9 * state.get("exp_avg", 0) + 0.1 * scale * gradient
            square = 0.999 * state.get("exp_avg_sq", 0) + 0.001 * (scale * gradient.detach()).square()
            deviation = (square / (1 - 0.999**number)).sqrt() + 1e-8
            moved[name] = p - RATE / (1 - 0.9**number) * mean / deviation
        return moved

    def course(self, x: Inputs, y: Tensor) -> list[Tensor]:
        """The student's gradient, with a graph to the teacher."""
        own, said = self.student(**x).logits, self.teacher(**x).logits
        loss = self.half * soft(said, own, self.tau) + (1 - self.half) * F.cross_entropy(own, y)
        return gradients(loss, self.student, graph=True)

    def teacher_gradient(self, found: list[Tensor], xe: Inputs, ye: Tensor) -> list[Tensor]:
        """What the exam says, and what the teacher's own cross-entropy says on it."""
        exam = F.cross_entropy(functional_call(self.student, self.ahead(found), kwargs=xe).logits, ye)
        told = gradients(exam, self.teacher)
        own = gradients(F.cross_entropy(self.teacher(**xe).logits, ye), self.teacher)
        norms = [torch.nn.utils.get_total_norm(part) for part in (told, own)]
        weight = self.feedback * norms[1] / norms[0].clamp_min(1e-30)
        return [weight * t + (1 - self.feedback) * o for t, o in zip(told, own, strict=True)]

    def train_on(self, x: Inputs, y: Tensor, xe: Inputs, ye: Tensor) -> None:
        """Course and exam; the teacher's step is the last."""
        found = self.course(x, y)
        exam = self.teacher_gradient(found, xe, ye)
        step(self.student, self.student_adam, found, clip=True)
        step(self.teacher, self.teacher_adam, exam, clip=False)


class Patient(nn.Module):
    """A student that also says its [CLS] states of all layers but the last, each through a map of its own."""

    def __init__(self, bert: BertForSequenceClassification, arch: Architecture, width: int) -> None:
        super().__init__()
        self.bert = bert
        self.maps = nn.ModuleList(nn.Linear(arch.hidden, width, bias=False) for _ in range(arch.layers - 1))

    def forward(self, **x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, C], and what is held to the teacher's states [L - 1, B, H_t]."""
        said = self.bert(**x, output_hidden_states=True)
        mapped = [one(state[:, 0]) for one, state in zip(self.maps, said.hidden_states[1:-1], strict=True)]
        return said.logits, torch.stack(mapped)


class MetaDistil(Naive):
    """Pilot step, quiz, and the step again under the new teacher (Zhou et al. 2022), as the released code has it.

    The quiz is one batch, and the pilot is a function of the student: nothing has to be copied and restored.
    """

    tau, pilot_rate = 5.0, 5e-5
    parts = (0.5, 0.5, 100.0)  # of labels, soft targets and [CLS] states

    def student_of(self, bert: BertForSequenceClassification, arch: Architecture) -> nn.Module:
        """With maps to the teacher's width."""
        config = self.teacher.config
        self.layers = matched_layers(arch.layers, config.num_hidden_layers)[:-1]
        return Patient(bert, arch, config.hidden_size)

    def lesson(self, x: Inputs, y: Tensor) -> Tensor:
        """The student's loss; kd-gym's weights sum to 1."""
        said = self.teacher(**x, output_hidden_states=True)
        states = torch.stack([said.hidden_states[layer + 1][:, 0] for layer in self.layers])
        own, mapped = self.student(**x)
        distance = ((own / self.tau).softmax(-1) - (said.logits / self.tau).softmax(-1)).square().mean()
        patient = (F.normalize(mapped, dim=-1) - F.normalize(states, dim=-1)).square().mean()
        losses = F.cross_entropy(own, y), self.tau**2 * distance, patient
        return sum(part * loss for part, loss in zip(self.parts, losses, strict=True)) / sum(self.parts)

    def teacher_gradient(self, x: Inputs, y: Tensor, xe: Inputs, ye: Tensor) -> list[Tensor]:
        """Of the quiz, through the pilot step."""
        found = gradients(self.lesson(x, y), self.student, graph=True)
        pilot = {
            name: p - self.pilot_rate * g for (name, p), g in zip(self.student.named_parameters(), found, strict=True)
        }
        quiz, _ = functional_call(self.student, pilot, kwargs=xe)
        return gradients(F.cross_entropy(quiz, ye), self.teacher)

    def train_on(self, x: Inputs, y: Tensor, xe: Inputs, ye: Tensor) -> None:
        """The teacher's step, and the student's own with the new teacher."""
        step(self.teacher, self.teacher_adam, self.teacher_gradient(x, y, xe, ye), clip=True)
        step(self.student, self.student_adam, gradients(self.lesson(x, y), self.student), clip=True)


NAIVE = {"LGTM": LGTM, "IKD": IKD, "MetaDistil": MetaDistil}
