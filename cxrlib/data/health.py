"""Report of a check: the faults of a data folder with counts, examples and advice, and whether the folder is usable.

Levels: ``error``: a run cannot use the folder. ``missing``: films are absent or cannot be decoded; a run stops, or
continues without them with ``--allow-missing``. ``warning`` and ``note``: a run continues.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cxrlib.errors import UserError

LEVELS = ("error", "missing", "warning", "note")
EXAMPLES = 5


@dataclass(frozen=True)
class Problem:
    """One kind of fault, with the number of cases, the first ``EXAMPLES`` cases, and advice for the user."""

    group: str
    level: str
    what: str
    count: int
    examples: list[str]
    advice: str


@dataclass
class Report:
    """Result of a check. ``facts`` describes the folder's content. ``fast`` means that no film was decoded."""

    folder: Path
    fast: bool
    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, group: str, level: str, what: str, concerned: list, advice: str) -> None:
        """Add a fault with ``concerned`` as its cases. If this is empty, nothing is added."""
        if concerned:
            examples = [str(case) for case in concerned[:EXAMPLES]]
            self.problems.append(Problem(group, level, what, len(concerned), examples, advice))

    @property
    def fit(self) -> bool:
        """Whether a run can use the folder as it is."""
        return not any(problem.level in ("error", "missing") for problem in self.problems)

    @property
    def fit_without_missing(self) -> bool:
        """Whether a run can use the folder with ``--allow-missing``."""
        return not any(problem.level == "error" for problem in self.problems)

    def require(self, *, allow_missing: bool = False) -> None:
        """Raise UserError with the worst fault unless a run can use the folder."""
        if self.fit or (allow_missing and self.fit_without_missing):
            return
        levels = ("error",) if allow_missing else ("error", "missing")
        faults = [problem for problem in self.problems if problem.level in levels]
        worst = min(faults, key=lambda problem: LEVELS.index(problem.level))
        more = f" (and {len(faults) - 1} other kinds of fault)" if len(faults) > 1 else ""
        raise UserError(f"{self.folder} is not usable: {_line(worst)}{more}. See all with: cxr check {self.folder}")

    def to_json(self) -> dict[str, Any]:
        """Report as plain data for ``--json``."""
        verdict = {"folder": "", "fit": self.fit, "fit_without_missing": self.fit_without_missing}
        return verdict | asdict(self) | {"folder": str(self.folder)}

    def __str__(self) -> str:
        facts = [f"  {name.replace('_', ' ')}: {_text(value)}" for name, value in self.facts.items()]
        lines = [str(self.folder), *facts, ""]
        for level in LEVELS:
            for problem in self.problems:
                if problem.level == level:
                    lines += [f"{level.upper()} [{problem.group}] {_line(problem)}", f"    {problem.advice}"]
        return "\n".join([*lines, self._verdict()])

    def _verdict(self) -> str:
        if self.fit:
            return "usable" + (" (films were not decoded)" if self.fast else "")
        if self.fit_without_missing:
            return "usable only with --allow-missing"
        return "not usable: correct the errors above first"


def _line(problem: Problem) -> str:
    examples = ", ".join(problem.examples) + (", …" if problem.count > len(problem.examples) else "")
    return f"{problem.what} ({problem.count:,}): {examples}"


def _text(fact: Any) -> str:
    """Text of a fact. Counts by name become "256x256 (53), 120x100 (1)"."""
    if isinstance(fact, dict):
        return ", ".join(f"{name} ({count:,})" for name, count in fact.items())
    return f"{fact:,}" if isinstance(fact, int) else str(fact)
