"""The circuit breaker: stops a run whose infrastructure fails one episode after the other; knows verdicts, not what failed."""

from tasks import Outcome

from .types import Episode


class InfraStopped(Exception):
    """So many episodes in a row ended without a verdict that going on would only use up tasks and time."""


class Breaker:
    """Counts INFRA episodes in a row, in the order in which they end; any other verdict sets it back."""

    def __init__(self, most: int) -> None:
        self._most, self._row = most, 0

    def note(self, episode: Episode) -> None:
        """Count an episode that has been recorded; InfraStopped when it is one too many."""
        if episode.verdict is None or episode.verdict.outcome is not Outcome.INFRA:
            self._row = 0
            return
        self._row += 1
        if self._row >= self._most:
            raise InfraStopped(
                f"stopped: {self._row} episodes in a row failed for reasons of the infrastructure, the last one by "
                f"{episode.verdict.reason or episode.error}. See what works with `greengrad doctor`; afterwards the same command goes "
                "on and attempts these again (rollout.infra_stop is the number)"
            )
