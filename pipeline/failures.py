"""What can go wrong with an engine, its server or the nodes, and is nobody's outcome; pure names, re-exported by types.py."""


class PolicyError(Exception):
    """The engine failed (unreachable, died, answered nonsense). Infrastructure: never a reward of 0."""


class EngineDied(Exception):
    """The engine's process is gone, and with it every request. Not an episode's failure: the run opens another engine and goes on."""


class NodesLost(Exception):
    """No node of the cluster is left on which episodes could play."""


class ContextFull(Exception):
    """The engine takes no longer prompt: the episode ends there and is graded."""
