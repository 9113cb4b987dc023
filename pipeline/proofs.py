"""A small finite MDP with an exact policy gradient, and the exact expectation of a credit scheme's gradient over all groups.

Knows credit.py's functions, nothing of models, tokens or sandboxes: it shows what they are estimates of. The MDP is a debugging session:

    broken   (Phi 1/4)  quick fix -> patched      dig -> understood
    patched  (Phi 3/4)  submit: R = 0             undo -> understood
    understood (Phi 0)  submit: R = 1             quick fix -> patched

The quick fix makes visible tests pass at once and solves nothing; to dig breaks them first and is the only way. Submitting ends the
episode, so does turn 3 (with R = 0 unless the action solves). Policy: softmax over two actions, a logit pair per (state, turn), all
different. A turn is one token. Everything is enumerated: 6 episodes, 6^G groups.
Shapes: E episodes that can happen, P parameters, G episodes of a group, N_i turns of an episode.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from .config import CreditConfig
from .credit import assign_credit, discount, earned_by_turn, pay_last
from .outcomes import Floats, Outcomes, Ragged

BROKEN, PATCHED, UNDERSTOOD = range(3)
PHI = (0.25, 0.75, 0.0)
TURNS = 3
LOGITS = np.array([[[0.3, -0.2], [0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.4, -0.1], [-0.3, 0.2]], [[0.0, 0.0], [0.1, 0.2], [0.0, -0.4]]])
"""theta, shape (turns, states, actions)."""


@dataclass(frozen=True, slots=True)
class Path:
    """One episode that can happen."""

    states: tuple[int, ...]
    actions: tuple[int, ...]
    reward: float


Scheme = Callable[[Outcomes], Ragged]
"""A group of episodes -> advantages per turn."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A scheme as configured, and what its gradient claims to be the unbiased gradient of; None: it claims nothing."""

    name: str
    credit: CreditConfig = field(default_factory=CreditConfig)
    unbiased_for: Literal["R", "sum r"] | None = None

    def __call__(self, outcomes: Outcomes) -> Ragged:
        """Its credit, without a length penalty."""
        return assign_credit(outcomes, self.credit, max_turns=1)


CLAIMS = (
    Claim("episode", CreditConfig(kind="episode")),
    Claim("episode_no_std", CreditConfig(kind="episode_no_std")),
    Claim("leave_one_out", CreditConfig(kind="leave_one_out"), "R"),
    Claim("ms_grpo", CreditConfig(kind="ms_grpo")),
    Claim("ms_grpo, tests", CreditConfig(kind="ms_grpo", turn_reward="tests")),
    Claim("next_turn, tests", CreditConfig(kind="next_turn", turn_reward="tests")),
    Claim("return_to_go", CreditConfig(kind="return_to_go"), "R"),
    Claim("return_to_go, gamma .9", CreditConfig(kind="return_to_go", gamma=0.9)),
    Claim("return_to_go, tests", CreditConfig(kind="return_to_go", turn_reward="tests"), "sum r"),
    Claim("turn_normalised, tests", CreditConfig(kind="turn_normalised", turn_reward="tests")),
    Claim("gigpo", CreditConfig(kind="gigpo")),
    Claim("gigpo, tests", CreditConfig(kind="gigpo", turn_reward="tests")),
    Claim("mt_grpo, tests", CreditConfig(kind="mt_grpo", turn_reward="tests")),
    Claim("potential", CreditConfig(kind="potential"), "R"),
    Claim("vine", CreditConfig(kind="vine"), "R"),
    Claim("potential, gamma .9", CreditConfig(kind="potential", gamma=0.9)),
)


def walk(states: tuple[int, ...] = (BROKEN,), actions: tuple[int, ...] = ()) -> Iterator[Path]:
    """Every episode that goes on from here."""
    state = states[-1]
    for action in (0, 1):
        following, submits = _move(state, action)
        solved = float(submits and state == UNDERSTOOD)
        if submits or len(states) == TURNS:
            yield Path(states, (*actions, action), solved)
        else:
            yield from walk((*states, following), (*actions, action))


def _move(state: int, action: int) -> tuple[int, bool]:
    """The next state, and whether the action submits."""
    if state == BROKEN:
        return (PATCHED if action == 0 else UNDERSTOOD), False
    return (UNDERSTOOD if state == PATCHED else PATCHED), action == (0 if state == PATCHED else 1)


PATHS = tuple(walk())


def probabilities(logits: Floats) -> Floats:
    """pi, shape (turns, states, actions)."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: Floats = weights / weights.sum(axis=-1, keepdims=True)
    return found


def path_probability(path: Path, pi: Floats) -> float:
    """p(path) under the policy."""
    return float(np.prod([pi[turn, state, action] for turn, (state, action) in enumerate(zip(path.states, path.actions, strict=True))]))


def scores(path: Path, pi: Floats) -> Floats:
    """grad log pi of each turn's action, shape (N, P)."""
    found = np.zeros((len(path.states), *pi.shape))
    for turn, (state, action) in enumerate(zip(path.states, path.actions, strict=True)):
        found[turn, turn, state] = -pi[turn, state]
        found[turn, turn, state, action] += 1.0
    return found.reshape(len(path.states), -1)


def earned(path: Path) -> float:
    """The sum of what its turns earn by visible tests: Phi of the last state - Phi of the first."""
    return PHI[path.states[-1]] - PHI[path.states[0]]


def sum_rewards(path: Path) -> float:
    """What its turns earn, and its reward."""
    return path.reward + earned(path)


def exact_gradient(value: Callable[[Path], float], logits: Floats = LOGITS) -> Floats:
    """grad E[value(path)], shape (P,): the sum over all episodes of p value grad log p."""
    pi = probabilities(logits)
    found: Floats = np.sum([path_probability(path, pi) * value(path) * scores(path, pi).sum(axis=0) for path in PATHS], axis=0)
    return found


def success(logits: Floats) -> float:
    """E[R]."""
    pi = probabilities(logits)
    return sum(path_probability(path, pi) * path.reward for path in PATHS)


def outcomes_of(group: tuple[Path, ...], pi: Floats) -> Outcomes:
    """What credit reads of a group; the anchor is the state, as the tree's hash is. Continuations: one, of the exact value."""
    return Outcomes(
        rewards_G=np.array([path.reward for path in group]),
        turns_G=np.array([len(path.states) for path in group], dtype=np.int64),
        malformed=tuple(np.zeros(len(path.states), dtype=bool) for path in group),
        passed=tuple(np.array([PHI[state] for state in path.states]) for path in group),
        anchors=tuple(tuple(str(state) for state in path.states) for path in group),
        futures=tuple(
            (np.array([[value_at(path, turn, pi)] for turn in range(len(path.states))]), np.ones((len(path.states), 1), np.int64))
            for path in group
        ),
    )


def value_at(path: Path, turn: int, pi: Floats) -> float:
    """V of the state before turn `turn`: E[R] of the episodes that begin as this one does."""
    weighed = [(path_probability(one, pi), one.reward) for one in endings(path, turn)]
    return sum(weight * reward for weight, reward in weighed) / sum(weight for weight, _ in weighed)


def endings(path: Path, turn: int) -> list[Path]:
    """The episodes that can go on from the state before turn `turn`."""
    begun = path.states[: turn + 1], path.actions[:turn]
    return [one for one in PATHS if (one.states[: turn + 1], one.actions[:turn]) == begun]


def expected_estimate(scheme: Scheme, size: int, logits: Floats = LOGITS, *, token_mean: bool = False) -> Floats:
    """E over all groups of `size` episodes of sum_i sum_t A_it grad log pi / size, shape (P,), exactly.

    token_mean divides by the group's turns (times their mean number, so that the scale can be compared) instead of by its episodes.
    """
    pi = probabilities(logits)
    chances_E = [path_probability(path, pi) for path in PATHS]
    scores_E = [scores(path, pi) for path in PATHS]
    mean_turns = sum(chance * len(path.states) for chance, path in zip(chances_E, PATHS, strict=True))
    total = np.zeros(logits.size)
    for group in itertools.product(range(len(PATHS)), repeat=size):
        credit = scheme(outcomes_of(tuple(PATHS[index] for index in group), pi))
        gradient = np.sum([advantages_N @ scores_E[index] for index, advantages_N in zip(group, credit, strict=True)], axis=0)
        turns = sum(len(PATHS[index].states) for index in group) / mean_turns
        total += float(np.prod([chances_E[index] for index in group])) * gradient / (turns if token_mean else size)
    return total


def centred_by_index(outcomes: Outcomes) -> Ragged:
    """r_t - mean of the others' r_t, over those who have a turn t, summed to go: of what verl issue 7244 warns, without the std."""
    rewards = pay_last(earned_by_turn(outcomes, CreditConfig(kind="return_to_go", turn_reward="tests")), outcomes.rewards_G)
    centred = [rewards_N.copy() for rewards_N in rewards]
    for turn in range(max(len(rewards_N) for rewards_N in rewards)):
        alive = [index for index, rewards_N in enumerate(rewards) if len(rewards_N) > turn]
        for index in alive:
            others = [rewards[other][turn] for other in alive if other != index]
            centred[index][turn] -= sum(others) / len(others) if others else 0.0
    return tuple(discount(centred_N, 1.0) for centred_N in centred)


def predicted_bias(size: int) -> Floats:
    """-sum_t E[baseline_t] grad P(there is a turn t), shape (P,): the bias of `centred_by_index`, in closed form.

    E[baseline_t] = E[r_t | turn t] * P(one of the size - 1 others has a turn t), which are independent of this episode.
    """
    pi, total = probabilities(LOGITS), np.zeros(LOGITS.size)
    for turn in range(TURNS):
        there = [(path_probability(path, pi), path) for path in PATHS if len(path.states) > turn]
        chance = sum(weight for weight, _ in there)
        mean = sum(weight * _reward_at(path, turn) for weight, path in there) / chance
        cost = mean * (1 - (1 - chance) ** (size - 1))
        total -= cost * np.sum([weight * scores(path, pi).sum(axis=0) for weight, path in there], axis=0)
    return total


def _reward_at(path: Path, turn: int) -> float:
    return path.reward if turn == len(path.states) - 1 else PHI[path.states[turn + 1]] - PHI[path.states[turn]]


def hidden_cost(size: int) -> tuple[float, float]:
    """What turn_normalised makes an extra turn cost: c of the best fit a (grad E[sum r] - c grad E[turns]), and the mean reward E[r].

    E[r] = E[sum r] / E[turns], the limit for large groups: grad E[sum (r - E[r])] with E[r] held fixed, scaled by the std.
    """
    estimate = expected_estimate(next(claim for claim in CLAIMS if claim.credit.kind == "turn_normalised"), size)
    basis = np.stack([exact_gradient(sum_rewards), exact_gradient(lambda path: len(path.states))], axis=1)
    scale, slope = np.linalg.lstsq(basis, estimate, rcond=None)[0]
    pi = probabilities(LOGITS)
    chances = np.array([path_probability(path, pi) for path in PATHS])
    mean = chances @ [sum_rewards(path) for path in PATHS] / (chances @ [len(path.states) for path in PATHS])
    return float(-slope / scale), float(mean)


def compare(estimate: Floats, truth: Floats) -> tuple[float, float]:
    """Direction and scale: cosine of the two, and |estimate| / |truth|."""
    sizes = float(np.linalg.norm(estimate)), float(np.linalg.norm(truth))
    return float(estimate @ truth) / (sizes[0] * sizes[1]) if sizes[0] else 0.0, sizes[0] / sizes[1]


def ascend(scheme: Scheme, steps: int, rate: float, size: int = 2, logits: Floats = LOGITS) -> Floats:
    """theta after so many steps along the exact expected estimate: training without noise, shape of LOGITS."""
    theta = logits.copy()
    for _ in range(steps):
        theta += rate * expected_estimate(scheme, size, theta).reshape(theta.shape)
    return theta
