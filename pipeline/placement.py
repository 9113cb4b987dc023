"""Which node of a cluster does what: learner ranks, engines, rollouts; pure arithmetic over what the nodes say of themselves.

GPUs (or, where no node has any, processors) are dealt node by node, those with most first: ranks, then engines, so that each keeps
together as far as it can. With policy.sleep engines begin again at the first GPU: they and the ranks take turns on it. Episodes play on
every node with a container engine. Left out: other users of the same cluster, racks, and moving a role while it runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from .config import Config


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node, as it was found."""

    node_id: str
    address: str
    gpus: int
    cpus: int
    backend: str
    """The container engine there; "" where there is none."""
    missing: tuple[str, ...] = ()
    """Folders that it should see and does not."""


@dataclass(frozen=True, slots=True)
class Post:
    """A place for one rank or one engine."""

    node: NodeFacts
    number: int
    """Of the (first) GPU or processor on the node."""
    gpus: tuple[int, ...]
    """Numbers on the node; empty on a CPU."""


@dataclass(frozen=True, slots=True)
class Roles:
    """Who does what."""

    ranks: tuple[Post, ...]
    engines: tuple[Post, ...]
    rollouts: tuple[NodeFacts, ...]

    def all_on(self, address: str) -> bool:
        """Whether learner and engines are all on this machine: weights need not leave it."""
        return {post.node.address for post in (*self.ranks, *self.engines)} == {address}


def assign_roles(nodes: Sequence[NodeFacts], config: Config) -> Roles:
    """The roles of a run; ValueError, in one line, where the cluster is too small or a node lacks what it needs."""
    for node in nodes:
        if node.missing:
            raise ValueError(f"node {node.address} does not see {node.missing[0]}: it must be on storage that all nodes share")
    on_gpu = any(node.gpus for node in nodes)
    width = config.policy.tensor_parallel if on_gpu else 1
    posts = [_posts(node, on_gpu) for node in sorted(nodes, key=lambda one: (-one.gpus, -one.cpus, one.address, one.node_id))]
    single = [post for of_node in posts for post in of_node]
    ranks = single[: config.learner.ranks]
    taken = set() if config.policy.sleep else set(ranks)
    wide = [block for of_node in posts for block in _blocks([post for post in of_node if post not in taken], width)]
    engines = wide[: config.policy.engines]
    rollouts = tuple(node for node in nodes if node.backend)
    kind = "GPUs" if on_gpu else "processors"
    if len(ranks) < config.learner.ranks or len(engines) < config.policy.engines:
        wanted = f"learner.ranks = {config.learner.ranks} and policy.engines = {config.policy.engines} of {width}"
        raise ValueError(f"the cluster has {len(single)} {kind} on {len(nodes)} nodes, too few for {wanted} (an engine stays on one node)")
    if not rollouts:
        raise ValueError("no node of the cluster has a container engine that works: see `greengrad doctor` there")
    return Roles(tuple(ranks), tuple(engines), rollouts)


def describe_roles(roles: Roles) -> list[str]:
    """One line a node, for a person."""
    lines = []
    nodes = sorted({post.node for post in (*roles.ranks, *roles.engines)} | set(roles.rollouts), key=lambda one: (one.address, one.node_id))
    for node in nodes:
        does = [f"rank {number}{_on(post)}" for number, post in enumerate(roles.ranks) if post.node == node]
        does += [f"engine {number}{_on(post)}" for number, post in enumerate(roles.engines) if post.node == node]
        does += [f"episodes ({node.backend})"] if node in roles.rollouts else []
        lines.append(f"{node.address} {node.node_id[:8]}: {', '.join(does)}")
    return lines


def local_numbers(posts: Sequence[Post]) -> list[tuple[int, int]]:
    """(number on its node, how many there) of each post."""
    counts = {node: len(list(group)) for node, group in groupby(posts, key=lambda post: post.node.node_id)}
    seen = dict.fromkeys(counts, 0)
    numbers = []
    for post in posts:
        name = post.node.node_id
        numbers.append((seen[name], counts[name]))
        seen[name] += 1
    return numbers


def _posts(node: NodeFacts, on_gpu: bool) -> list[Post]:
    return [Post(node, gpu, (gpu,)) for gpu in range(node.gpus)] if on_gpu else [Post(node, cpu, ()) for cpu in range(node.cpus)]


def _blocks(posts: Sequence[Post], width: int) -> list[Post]:
    """As many engines of `width` GPUs as a node's posts make."""
    parts = [posts[start : start + width] for start in range(0, len(posts) - width + 1, width)]
    return [Post(part[0].node, part[0].number, tuple(gpu for post in part for gpu in post.gpus)) for part in parts]


def _on(post: Post) -> str:
    return f" (GPU {', '.join(map(str, post.gpus))})" if post.gpus else ""
