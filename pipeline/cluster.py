"""A training run on the nodes of a Ray cluster: who is there, what each does, and the world that train.py acts on.

One process, the owner, runs the loop and writes the journal. Learner ranks, engines and the nodes that play episodes are actors
(actors.py), dealt out by placement.py.

covered:     a lost node that played episodes: they go on elsewhere (dispatch.py). A lost rank or engine: recover.py opens this world
             again on the nodes that are left. A lost owner: the same command resumes.
not covered: GPUs are not reserved with Ray (placement.py deals them out itself), so a cluster serves one run at a time; Ray's own ports
             have no password unless its token authentication is on: keep them in a private network. Weights pass through the run
             folder, which all nodes must see (through shared memory where learner, engines and owner are on one machine).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from sandbox import SandboxError
from tasks import Task

from .actor import Prepared, open_chat, open_machines
from .actors import CALLS, ClusterRanks, EngineHost, NodeActor, RemoteNode, ThroughActor, on_node, own_gpus
from .config import Config
from .dispatch import Dispatcher, NodeLost
from .engine import STOP_SECONDS
from .engines import Engines, make_policy, open_client
from .gather import gather
from .jury import open_jury
from .learner import DeepSpeedLearner, check_setup
from .manifest import record_images
from .node import agree
from .placement import NodeFacts, Roles, assign_roles, describe_roles
from .reward import open_channel
from .rig import remote_rig
from .train import World
from .types import EngineDied, NodesLost
from .world import choose_run_tasks, find_rest, setup_learner, split_usable

log = logging.getLogger(__name__)
LOOK_SECONDS = 60.0
"""A node that does not say within this time what it has is left out."""


def check_cluster(config: Config) -> None:
    """What a cluster cannot do yet, in one line, before anything is started."""
    if config.policy.url is not None:
        raise ValueError("policy.url: with --cluster the engines are started on its nodes; leave it out")
    if config.policy.transfer != "folder":
        raise ValueError(f"policy.transfer: {config.policy.transfer}: with --cluster weights pass through the run folder; use folder")
    if config.user is not None and config.user.server is not None and config.user.server.path is not None:
        raise ValueError(
            "user.server.path: with --cluster each node would serve a user of its own; serve it once, and give user.server.url"
        )


def connect(address: str) -> None:
    """Join a running cluster ("auto": the one of this machine); ValueError where there is none."""
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RayError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--cluster {address}: no Ray cluster answers ({why}); `ray start --head` on one machine begins one") from None


def survey(config: Config, run: Path) -> list[NodeFacts]:
    """What the nodes of the cluster have; those that do not answer in time are left out, and named in the log."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    wanted = [run.absolute(), config.tasks.suite.absolute(), *([config.model.path.absolute()] if config.model else [])]
    found = {node["NodeID"]: on_node(node["NodeID"], _look).remote(config, wanted) for node in alive}
    _, late = ray.wait(list(found.values()), num_returns=len(found), timeout=LOOK_SECONDS)
    facts = []
    for node in alive:
        resources, answer = node["Resources"], found[node["NodeID"]]
        try:
            backend, why, missing = ray.get(answer, timeout=0)
        except (RayError, GetTimeoutError) as failure:
            log.warning("node %s is left out: %s", node["NodeManagerAddress"], "no answer" if answer in late else failure)
            continue
        if why:
            log.info("node %s plays no episodes: %s", node["NodeManagerAddress"], why)
        facts.append(
            NodeFacts(
                node["NodeID"],
                node["NodeManagerAddress"],
                int(resources.get("GPU", 0)),
                int(resources.get("CPU", 0)),
                backend,
                tuple(missing),
            )
        )
    return facts


def _look(config: Config, wanted: Sequence[Path]) -> tuple[str, str, list[str]]:
    """Runs on a node: its container engine, or why there is none, and the folders that it does not see."""
    try:
        backend, why = open_machines(config.sandbox).name, ""
    except SandboxError as error:
        backend, why = "", str(error)
    return backend, why, [str(path) for path in wanted if not path.exists()]


@asynccontextmanager
async def open_cluster_world(config: Config, run: Path) -> AsyncIterator[World]:
    """What a training run acts on, over the nodes that are there now; closed in reverse order, whatever happens."""
    setup = setup_learner(config, run)
    check_setup(setup)
    chosen, apart = choose_run_tasks(config)
    roles = assign_roles(await asyncio.to_thread(survey, config, run), config)
    for line in describe_roles(roles):
        log.info("%s", line)
    chat = open_chat(config)
    async with AsyncExitStack() as stack:
        hosts = await start_hosts(config, run, roles, stack)
        policy = Engines([make_policy(config, chat.template, open_client("http://engine", ThroughActor(host))) for host in hosts])
        stack.push_async_callback(policy.close)
        await gather([member.prepare() for member in policy.members])
        nodes, prepared = await start_nodes(config, [*chosen, *apart], roles, hosts, stack)
        for line in record_images(run, prepared.images):
            log.warning("going on although %s", line)
        dispatcher = await stack.enter_async_context(Dispatcher(nodes, policy.members, 2 * config.sandbox.concurrency))
        rest = find_rest(config.policy, policy)
        async with rest():
            crew = await asyncio.to_thread(ClusterRanks, roles.ranks, setup)
            stack.callback(crew.close)
            learner = await asyncio.to_thread(DeepSpeedLearner, setup, crew)
        train, test = split_usable(config, prepared, apart)
        rig = remote_rig(chat, config.rollout, config.model.context if config.model else 0, dispatcher)
        rig = replace(rig, channel=await stack.enter_async_context(open_channel(config.reward, config.train.seed)))
        rig = replace(rig, jury=await stack.enter_async_context(open_jury(config.hindsight)))
        here = roles.all_on(ray.util.get_node_ip_address())
        yield World(policy, learner, rig, train, test, None, rest, shared_memory=here)


async def start_hosts(config: Config, run: Path, roles: Roles, stack: AsyncExitStack) -> list[Any]:
    """The actors of all engines, each with its server up."""
    hosts = []
    for number, post in enumerate(roles.engines):
        host = on_node(post.node.node_id, EngineHost, max_concurrency=CALLS).remote(own_gpus(post))
        stack.push_async_callback(close_host, host)
        hosts.append((host, (run / "logs" / f"vllm-{number}.log").absolute()))
    await gather([_started(host, config, file) for host, file in hosts])
    return [host for host, _ in hosts]


async def close_host(host: Any) -> None:
    """End its server and then the actor; a server whose actor dies first is ended by its guard."""
    try:
        async with asyncio.timeout(2 * STOP_SECONDS):
            await host.stop.remote()
    except (RayError, TimeoutError) as failure:
        log.warning("an engine did not end in order: %s", " ".join(str(failure).split())[:300])
    ray.kill(host)


async def start_nodes(
    config: Config, tasks: Sequence[Task], roles: Roles, hosts: Sequence[Any], stack: AsyncExitStack
) -> tuple[list[RemoteNode], Prepared]:
    """The nodes that can play these tasks, and what they made of them; NodesLost where none is left."""
    ready: list[tuple[RemoteNode, Prepared]] = []

    async def start(facts: NodeFacts) -> None:
        actor = on_node(facts.node_id, NodeActor, max_concurrency=CALLS).remote(config, hosts)
        node = RemoteNode(f"{facts.address} {facts.node_id[:8]}", actor)
        stack.push_async_callback(node.close)
        try:
            ready.append((node, await node.prepare(tasks)))
        except (NodeLost, SandboxError) as failure:
            log.warning("node %s is left out: %s", node.name, failure)

    await gather([start(facts) for facts in roles.rollouts])
    if not ready:
        raise NodesLost("no node could make its machines ready")
    ready.sort(key=lambda one: one[0].name)  # whose images are recorded shall not depend on who was first
    return [node for node, _ in ready], agree([prepared for _, prepared in ready])


async def _started(host: Any, config: Config, file: Path) -> None:
    try:
        await host.start.remote(config, file)
    except RayTaskError as failure:
        raise failure.cause from None
    except RayError as failure:
        raise EngineDied(f"an engine did not start: {' '.join(str(failure).split())[:300]}") from None
