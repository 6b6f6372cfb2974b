"""The exported student, read as others will read it: its logits, its size, its latency, and its ONNX form."""

import importlib.util
import logging
import statistics
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kd_gym.backend.teacher import load_teacher, teacher_inputs
from kd_gym.envs.faces import DistillationEnv
from kd_gym.envs.lab import Lab
from kd_gym.errors import KDGymError
from kd_gym.experiments.score import Episode, checkpoint_scores

ONNX_FILE = "model.onnx"
TOLERANCE = 1e-4  # of logits, in float32
_ROWS, _REPEATS = 32, 15


@dataclass(frozen=True)
class Sizes:
    """How large and how fast a model is: parameters, megabytes on disk, and milliseconds for one batch of 32 rows."""

    name: str
    parameters: int
    megabytes: float
    milliseconds: float


def _open(folder: Path) -> PreTrainedModel:
    return load_teacher(folder, torch.device("cpu")).eval()


def _inputs(lab: Lab, rows: Tensor, model: PreTrainedModel) -> dict[str, Tensor]:
    split = lab.data.split("report")
    return teacher_inputs(split.batch(rows), lab.data.vocabulary, model.config)


def check_export(folder: Path, env: DistillationEnv, episode: Episode) -> None:
    """Raise unless the written checkpoint, opened with `transformers`, has the score that was measured."""
    data = env.lab.data
    for name, found in checkpoint_scores(folder, data, "report", torch.device("cpu")).items():
        expected = episode.scores[name]
        if abs(found - expected) > 2 / len(data.split("report")):  # a row or two may stand on the edge
            raise KDGymError(f"the written checkpoint has report {name} {found:.4f}, not {expected:.4f}")


@torch.inference_mode()
def sizes(folders: dict[str, Path | None], lab: Lab) -> list[Sizes]:
    """Size and latency of each checkpoint, measured in turn on a CPU, on the same rows of `report` of middle length."""
    opened = {name: (_open(folder), folder) for name, folder in folders.items() if folder is not None}
    order = lab.data.split("report").by_length()
    middle = order[max(0, len(order) // 2 - _ROWS // 2) :][:_ROWS]
    times: dict[str, list[float]] = {name: [] for name in opened}
    for repeat in range(_REPEATS + 2):
        for name, (model, _) in opened.items():
            inputs = _inputs(lab, middle, model)
            begin = time.perf_counter()
            model(**inputs)
            if repeat >= 2:  # the first ones warm up
                times[name].append(time.perf_counter() - begin)
    return [
        Sizes(
            name,
            sum(p.numel() for p in model.parameters()),
            (folder / "model.safetensors").stat().st_size / 1e6,
            1000 * statistics.median(times[name]),
        )
        for name, (model, folder) in opened.items()
    ]


def check_onnx() -> None:
    """Raise unless what ONNX needs is installed."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise KDGymError(f"--onnx needs {', '.join(missing)}: pip install -c constraints.txt -e '.[onnx]'")


@torch.inference_mode()
def export_onnx(folder: Path, lab: Lab) -> None:
    """Write `model.onnx` beside the checkpoint, with batch and length free; raise unless its logits are the same."""
    import onnxruntime

    model = _open(folder)
    split = lab.data.split("report")
    inputs = _inputs(lab, split.by_length()[-8:], model)
    names = list(inputs)
    free = {name: {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")} for name in names}
    file = folder / ONNX_FILE
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own making
        torch.onnx.export(
            model,
            kwargs=inputs,
            f=file,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=free,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for rows in (split.by_length()[:5], split.by_length()[-8:]):
        inputs = _inputs(lab, rows, model)
        (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        apart = float(np.abs(found - model(**inputs).logits.numpy()).max())
        if apart > TOLERANCE:
            raise KDGymError(f"the ONNX file's logits differ by {apart:.1e} from PyTorch's")
