"""Which node does what: pure, on clusters of a few lines."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.config import Config, LearnerConfig, PolicyConfig, TasksConfig
from pipeline.convert import tiny_model
from pipeline.placement import NodeFacts, Roles, assign_roles, describe_roles, local_numbers
from tasks import toy_suite


def make_config(ranks: int, engines: int = 1, width: int = 1, sleep: bool = False) -> Config:
    return Config(
        tasks=TasksConfig(suite=Path("none")),
        learner=LearnerConfig(ranks=ranks),
        policy=PolicyConfig(engines=engines, tensor_parallel=width, sleep=sleep),
    )


def node(number: int, gpus: int = 0, cpus: int = 4, backend: str = "docker", missing: tuple[str, ...] = ()) -> NodeFacts:
    return NodeFacts(f"id{number}", f"10.0.0.{number}", gpus, cpus, backend, missing)


def told(roles: Roles) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in describe_roles(roles))


def test_sixteen_nodes_of_eight_gpus_hold_64_ranks_and_eight_engines_of_eight() -> None:
    roles = assign_roles([node(number, gpus=8) for number in range(16)], make_config(64, engines=8, width=8))
    assert [post.gpus for post in roles.ranks[:9]] == [(0,), (1,), (2,), (3,), (4,), (5,), (6,), (7,), (0,)]
    assert len({post.node for post in roles.ranks}) == 8 and {post.gpus for post in roles.engines} == {tuple(range(8))}
    assert not {post.node for post in roles.ranks} & {post.node for post in roles.engines}
    assert len(roles.rollouts) == 16
    assert not roles.all_on("10.0.0.0")


def test_one_node_of_eight_gpus_holds_both_where_they_take_turns() -> None:
    apart = assign_roles([node(1, gpus=8)], make_config(4, engines=2, width=2))
    assert [post.gpus for post in apart.engines] == [(4, 5), (6, 7)]
    turns = assign_roles([node(1, gpus=8)], make_config(8, engines=1, width=8, sleep=True))
    assert turns.engines[0].gpus == tuple(range(8))
    assert turns.all_on("10.0.0.1") and not turns.all_on("10.0.0.9"), "the weights' folder is made by the process of the command"
    with pytest.raises(ValueError, match="the cluster has 8 GPUs on 1 nodes, too few"):
        assign_roles([node(1, gpus=8)], make_config(8, engines=1))


def test_without_gpus_processors_are_dealt_and_nodes_with_engines_play() -> None:
    nodes = [node(1, cpus=3, backend=""), node(2, cpus=0), node(3, cpus=0, backend="bubblewrap")]
    assert told(assign_roles(nodes, make_config(2))) == {
        "10.0.0.1 id1": "rank 0, rank 1, engine 0",
        "10.0.0.2 id2": "episodes (docker)",
        "10.0.0.3 id3": "episodes (bubblewrap)",
    }


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([node(1, cpus=2)], "too few for learner.ranks = 2 and policy.engines = 1"),
        ([node(1, backend="")], "no node of the cluster has a container engine"),
        ([node(1, missing=("/shared/suite",))], "node 10.0.0.1 does not see /shared/suite"),
        ([], "0 processors on 0 nodes"),
        ([node(1, gpus=2), node(2, gpus=2)], "too few for learner.ranks = 2 and policy.engines = 1 of 4"),
    ],
)
def test_a_cluster_that_will_not_do_is_refused_in_one_line(nodes: list[NodeFacts], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        assign_roles(nodes, make_config(2, width=4 if "of 4" in words else 1))


@given(st.lists(st.integers(0, 8), min_size=1, max_size=6), st.integers(1, 16), st.integers(1, 4), st.sampled_from([1, 2, 4]))
def test_no_gpu_is_dealt_twice_and_an_engine_stays_on_one_node(gpus: list[int], ranks: int, engines: int, width: int) -> None:
    nodes = [node(number, gpus=count) for number, count in enumerate(gpus)]
    try:
        roles = assign_roles(nodes, make_config(ranks, engines, width))
    except ValueError:
        return
    dealt = [(post.node.node_id, gpu) for post in (*roles.ranks, *roles.engines) for gpu in post.gpus]
    assert len(dealt) == len(set(dealt)) and all(gpu < found.gpus for found in nodes for name, gpu in dealt if name == found.node_id)
    numbers = local_numbers(roles.ranks)
    assert all(0 <= number < count for number, count in numbers) and len(numbers) == ranks


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--policy.url", "http://127.0.0.1:9"], "policy.url: with --cluster the engines are started on its nodes"),
        (["--user.kind", "model", "--user.server.path", "m"], "user.server.path: with --cluster each node would serve a user of its own"),
        (["--rft.episodes", "nowhere", "--rft.epochs", "1"], "fine-tuning (rft.episodes) and srl run on one machine"),
        ([], "no Ray cluster answers"),
    ],
)
def test_what_a_cluster_cannot_do_is_said_in_one_line_and_leaves_no_run_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    toy_suite(tmp_path / "suite")
    tiny_model(tmp_path / "model")
    (tmp_path / "c.yaml").write_text(f"tasks: {{suite: {tmp_path}/suite}}\nmodel: {{path: {tmp_path}/model, context: 512}}\n")
    capsys.readouterr()  # what making a model has printed
    assert main(["train", str(tmp_path / "c.yaml"), "--run", str(tmp_path / "run"), "--cluster", "auto", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line and not (tmp_path / "run").exists()
