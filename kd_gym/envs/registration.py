"""The ids of all environments, registered with Gymnasium as text: nothing heavy is imported."""

import gymnasium as gym

TASK_NAMES = ("SST2", "MRPC", "RTE", "QNLI", "MNLI", "QQP", "CoLA", "RottenTomatoes")
FAMILIES = {
    "KnowledgeSelect": "kd_gym.envs.knowledge_select:KnowledgeSelect",
    "TeacherWeight": "kd_gym.envs.teacher_weight:TeacherWeight",
    "SamplePriority": "kd_gym.envs.sample_priority:SamplePriority",
    "JointControl": "kd_gym.envs.joint_control:JointControl",
}


def register_envs() -> list[str]:
    """Register every family on every task, its `-Base` twin, and the family's id for own data. Idempotent."""
    ids = []
    for family, path in FAMILIES.items():
        kinds: list[tuple[str, dict[str, object]]] = [(family, {"task": None})]
        for task in TASK_NAMES:
            kinds.append((f"{family}-{task}", {"task": task}))
            kinds.append((f"{family}-{task}-Base", {"task": task, "base": True}))
        for name, kwargs in kinds:
            ids.append(f"{name}-v0")
            if ids[-1] not in gym.registry:
                gym.register(
                    ids[-1],
                    entry_point=f"{path}Env",
                    vector_entry_point=f"{path}VectorEnv",
                    kwargs=kwargs,
                    disable_env_checker=True,  # the tests run it; at every `make` it would train a student twice
                )
    return ids
