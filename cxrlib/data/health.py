"""A data folder's health as it was found: what is wrong, counted, with examples and what to do, and whether it is fit.

``error``: a run cannot use the folder so. ``missing``: films that are not there or cannot be decoded; a run stops,
or goes on without them when told ``--allow-missing``. ``warning`` and ``note``: a run goes on.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cxrlib.errors import UserError

LEVELS = ("error", "missing", "warning", "note")
EXAMPLES = 5


@dataclass(frozen=True)
class Problem:
    """One kind of fault: ``count`` of them, the first few as ``examples``, and ``advice`` on what to do."""

    group: str
    level: str
    what: str
    count: int
    examples: list[str]
    advice: str


@dataclass
class Report:
    """What a check found. ``facts`` says what the folder holds; ``fast`` that no film was decoded."""

    folder: Path
    fast: bool
    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, group: str, level: str, what: str, concerned: list, advice: str) -> None:
        """Note a fault of everything in ``concerned``; nothing where that is empty."""
        if concerned:
            examples = [str(one) for one in concerned[:EXAMPLES]]
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
        """Raise UserError naming the first fault unless the folder is fit for a run."""
        if self.fit or (allow_missing and self.fit_without_missing):
            return
        levels = ("error",) if allow_missing else ("error", "missing")
        faults = [problem for problem in self.problems if problem.level in levels]
        worst = min(faults, key=lambda problem: LEVELS.index(problem.level))
        more = f" (and {len(faults) - 1} other kinds of fault)" if len(faults) > 1 else ""
        raise UserError(f"{self.folder} is not fit: {_line(worst)}{more}. See all with: cxr check {self.folder}")

    def to_json(self) -> dict[str, Any]:
        """The report as plain data for ``--json``."""
        verdict = {"folder": str(self.folder), "fit": self.fit, "fit_without_missing": self.fit_without_missing}
        return verdict | {"fast": self.fast, "facts": self.facts, "problems": [asdict(one) for one in self.problems]}

    def __str__(self) -> str:
        facts = [f"  {name.replace('_', ' ')}: {_words(value)}" for name, value in self.facts.items()]
        lines = [str(self.folder), *facts, ""]
        for level in LEVELS:
            for problem in self.problems:
                if problem.level == level:
                    lines += [f"{level.upper()} [{problem.group}] {_line(problem)}", f"    {problem.advice}"]
        return "\n".join([*lines, self._verdict()])

    def _verdict(self) -> str:
        if self.fit:
            return "fit" + (" as far as can be seen without decoding the films" if self.fast else "")
        return "fit only with --allow-missing" if self.fit_without_missing else "not fit: mend the errors above first"


def _line(problem: Problem) -> str:
    shown = ", ".join(problem.examples) + (", …" if problem.count > len(problem.examples) else "")
    return f"{problem.what} ({problem.count:,}): {shown}"


def _words(fact: Any) -> str:
    """A fact as a person reads it; counts by name as "256x256 (53), 120x100 (1)"."""
    if isinstance(fact, dict):
        return ", ".join(f"{name} ({count:,})" for name, count in fact.items())
    return f"{fact:,}" if isinstance(fact, int) else str(fact)
