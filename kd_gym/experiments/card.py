"""The model card of a distilled student."""

from typing import Any

from kd_gym.envs.lab import Lab
from kd_gym.experiments.export import Sizes

_PAGE = """---
library_name: transformers
pipeline_tag: text-classification
tags:
- knowledge-distillation
- kd-gym
---

# {title}

{layers} layers of {hidden}, distilled with kd-gym {version} under the controller `{controller}`.

```python
from transformers import pipeline

classify = pipeline("text-classification", model="PATH")
classify({example})
```

Labels: {labels}.

## Score

| | {metrics} |
|---|{rules}|
| teacher | {teacher} |
| this student | {student} |

On `report`, {rows} rows of {source}, which neither the student nor its controller has seen; scored once. {chosen}
{notice}

## Size and speed

| model | parameters | MB | ms for 32 rows |
|---|---|---|---|
{sizes}

Milliseconds are medians on the CPU that wrote this card.

## How it was made

`{command}`

- env `{env}`{arguments}
- data: {source}, fingerprint `{fingerprint}`; teacher weights `{hash}`
- seed {seed}, {updates} updates; {flops:.3g} FLOPs for student, teacher and evaluations, {thought:.3g} for the
  controller; {seconds:.0f} s
"""


def model_card(about: dict[str, Any], lab: Lab, sizes: list[Sizes]) -> str:
    """The `README.md` of a checkpoint folder, with its score, data, controller, cost and command."""
    task, arch = lab.data.task, lab.init.arch
    metrics = list(about["scores"])
    scores = about["teacher"]["scores"]
    words = ("a text", "its pair")[: len(task.text)]
    chosen = about["chosen"]
    return _PAGE.format(
        title=f"{task.name} student",
        layers=arch.layers,
        hidden=arch.hidden,
        version=about["versions"]["kd_gym"],
        controller=about["controller"],
        example=repr(words[0]) if len(words) == 1 else f'{{"text": {words[0]!r}, "text_pair": {words[1]!r}}}',
        labels=", ".join(task.labels),
        metrics=" | ".join(metrics),
        rules="---|" * (len(metrics) - 1) + "---",
        teacher=" | ".join(f"{scores[m]:.4f}" if m in scores else "pretended" for m in metrics),
        student=" | ".join(f"{about['scores'][m]:.4f}" for m in metrics),
        rows=len(lab.data.split("report")),
        source=about["data"]["source"],
        chosen=f"Of all decisions, the student after update {chosen[0]} was best on `select` ({chosen[1]:.4f})."
        if chosen
        else "It is the student of the last update.",
        notice=f"\n**{lab.data.notice}**" if lab.data.notice else "",
        sizes="\n".join(f"| {s.name} | {s.parameters:,} | {s.megabytes:.1f} | {s.milliseconds:.1f} |" for s in sizes),
        command=about["command"] or "made from Python",
        env=about["env"],
        arguments=" with " + ", ".join(f"`{k}={v}`" for k, v in about["env_config"].items()),
        fingerprint=about["data"]["fingerprint"],
        hash=about["teacher"]["hash"],
        seed=about["seed"],
        updates=about["updates"],
        flops=about["flops"]["episode"],
        thought=about["flops"]["controller"],
        seconds=about["seconds"],
    )
