"""A name that is wrong is answered with the nearest one, in one line."""

import pytest

from commands import SST2, TINY, refused
from kd_gym import ENV_IDS
from kd_gym.agents.protocol import AGENTS
from kd_gym.backend.knowledge import KNOWLEDGE
from kd_gym.cli import COMMANDS
from kd_gym.envs.contexts import SETS
from kd_gym.experiments.describe import KINDS
from kd_gym.tasks.task import TASKS

pytestmark = pytest.mark.usefixtures("own_folder")


def misspelt(name: str) -> str:
    """The name with one letter in the middle lost, in other case."""
    middle = len(name) // 2
    return (name[:middle] + name[middle + 1 :]).swapcase()


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


@pytest.mark.usefixtures("light_checkpoint")
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


def test_a_process_with_a_misspelt_env_prints_one_line_and_exits_with_2(tmp_path):
    done = refused(tmp_path, "train", "--env", "KnowledgeSelect-SST", "--agent", "ppo")
    assert done.stderr == "kd-gym: unknown env 'KnowledgeSelect-SST': did you mean 'KnowledgeSelect-SST2'?\n"
    assert done.stdout == ""


@pytest.mark.slow
def test_a_process_with_a_misspelt_agent_prints_one_line_and_exits_with_2(tmp_path):
    done = refused(tmp_path, "train", *SST2, "--agent", "pppo")
    assert done.stderr == "kd-gym: unknown agent 'pppo': did you mean 'ppo'?\n"
