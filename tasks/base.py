"""What is to be solved and how it ended: Task and Verdict; knows a sandbox image, no model."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from sandbox import Image


class Rule(StrEnum):
    """How the grader of a task's family decides from the statuses of its tests (rules.py)."""

    OFFICIAL = "official"
    """The official harness: every FAIL_TO_PASS passed (or xfailed), every PASS_TO_PASS passed, xfailed or skipped."""
    ALL_PASS = "all_pass"
    """Every listed test PASSED or XFAIL; a missing one has failed."""
    PASSED_SET = "passed_set"
    """The tests that passed are exactly the listed ones."""
    SAME_STATUSES = "same_statuses"
    """The same tests as in `expected`, each with its status: some must fail."""
    NO_FAILURE = "no_failure"
    """Every FAIL_TO_PASS passed, no PASS_TO_PASS failed; a missing PASS_TO_PASS is no failure."""
    REWARD = "reward"
    """The evaluation itself says so: its one test is the reward, 1 or more."""


@dataclass(frozen=True, slots=True)
class Task:
    """One benchmark instance, as SWE-bench 5 defines it (task.yaml, tests.json, patches and eval.sh of a task folder)."""

    instance_id: str
    repo: str
    version: str
    base_commit: str
    problem_statement: str
    image: Image
    gold_patch: str
    test_patch: str
    eval_script: str
    """The whole evaluation as bash: restores and applies the tests, prints the log between the official markers."""
    log_parser: str
    """Name of a parser in the swebench package's registry, e.g. parse_log_pytest."""
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    eval_type: str = "pass_and_fail"
    rule: Rule = Rule.OFFICIAL
    expected: tuple[tuple[str, str], ...] = ()
    """Test id -> status, for the rule SAME_STATUSES."""
    family: str = "swebench"
    """Whose rows it comes from (families/)."""
    language: str = ""
    """As the row says; "" where it does not."""
    difficulty: str = ""
    """As the row says (Verified: "<15 min fix" ...); "" where it does not."""
    split: str = "test"
    hints: str = ""
    test_seconds: float = 1800.0
    """Time limit of one run of eval_script."""
    files: tuple[str, ...] = ()
    """Paths that the gold patch touches."""
    requirements: tuple[str, ...] = ()
    """What /opt/env holds, pinned (`prepare_suite` makes it); empty where the image is complete."""
    unusable: str = ""
    """Why it must not be attempted: its answer is within reach, or it could not be shown that it is not (`seal_tasks`), or it cannot be
    graded as its family does (its reader). "" where it may."""


class Outcome(StrEnum):
    """The table of outcomes (README, "What counts as what")."""

    RESOLVED = "resolved"
    UNRESOLVED = "unresolved"
    NO_PATCH = "no_patch"
    PATCH_INVALID = "patch_invalid"
    TESTS_TIMEOUT = "tests_timeout"
    SUSPECT = "suspect"
    INFRA = "infra"


class Evidence(StrEnum):
    """What a verdict rests on."""

    NONE = ""
    """No test was run."""
    WITNESSED = "witnessed"
    """Our plugin watched the tests: a log that says resolved counts only where its signed record, out of band, agrees."""
    LOG_ONLY = "log_only"
    """The log alone, which the process under test has printed: other runners than pytest, and environments that are not ours."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a patch was graded, in a fresh sandbox, from the patch alone."""

    instance_id: str
    outcome: Outcome
    reason: str = ""
    """One line for a person: why it is not resolved, which hunks were dropped, what failed in the machine."""
    tests: dict[str, str] = field(default_factory=dict)
    """Test id -> status, as the official parser reads the log."""
    seconds: float = 0.0
    log: str = ""
    """The evaluation's output (decoded with replacement)."""
    witness: dict[str, str] = field(default_factory=dict)
    """Test id -> status, as our own pytest plugin saw it, out of band; empty where none ran."""
    dropped: tuple[str, ...] = ()
    """Paths whose hunks were left out because they could decide the grade (tests, conftest.py, setup.cfg, *.pth ...)."""
    kept: tuple[str, ...] = ()
    """Such paths that were kept, because the gold patch of this task touches them."""
    official: bool | None = None
    """What the official harness says of the log, by its parser alone; None where no test was run."""
    evidence: Evidence = Evidence.NONE
    audited: bool = False
    """Whether held-out variants of the tests were run (audit.py)."""
    findings: tuple[str, ...] = ()
    """What they showed; any makes the verdict SUSPECT."""
    notes: tuple[str, ...] = ()
    """What the patch's text looks like; decides nothing."""

    @property
    def reward(self) -> float | None:
        """1.0 resolved, 0.0 graded and not resolved, None when the machine failed: not graded."""
        if self.outcome is Outcome.INFRA:
            return None
        return float(self.outcome is Outcome.RESOLVED)


@dataclass(frozen=True, slots=True)
class Prediction:
    """A patch to be graded, as the official harness names its parts."""

    instance_id: str
    model_name_or_path: str
    model_patch: str
    """"" where the model changed nothing."""


@dataclass(frozen=True, slots=True)
class Suite:
    """The tasks of one folder, with the rows that could not be read (id or file -> what is wrong)."""

    path: Path
    tasks: tuple[Task, ...]
    broken: dict[str, str] = field(default_factory=dict)
