"""Model card of an exported checkpoint: Markdown with a YAML head as the Hub reads it, from the run's tables.

A table that is missing or damaged is named in its section. Everything that comes from names or tables is escaped.
"""

import json
import re
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from cxrlib import UserError, metrics, paths
from cxrlib.data import film_identity
from cxrlib.labels import FINDINGS, display_name
from cxrlib.report import page, sections

TEMPLATE = "model_card.md.j2"

EXAMPLE = """\
import json, cv2, torch, torchvision
from safetensors.torch import load_file
config = json.load(open("config.json")); how = config["export"]["input"]
net = torchvision.models.resnet50(num_classes=len(config["labels"]))
net.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
net.load_state_dict(load_file("model.safetensors")); net.eval()
film = cv2.resize(cv2.imread("film.png", 0), (how["size"], how["size"]), interpolation=cv2.INTER_AREA)
image = (torch.from_numpy(film)[None, None] / how["scale"] - how["mean"]) / how["std"]
with torch.no_grad(): probabilities = torch.sigmoid(net(image))[0].tolist()
for label, p in zip(config["labels"], probabilities): print(f"{label:20} {p:.3f}")
"""
"""Program in the card that reads a film without this package. It stands in the exported folder."""


def text(
    home: paths.Run,
    meta: dict[str, Any],
    *,
    parity: dict[str, Any] | None = None,
    gate: bool = False,
    source: str = "",
) -> str:
    """Model card as text, from the run's tables and a checkpoint's JSON.

    ``parity``: ``difference`` of logits and number of ``films``, None without ONNX. ``gate``: whether there is one.
    ``source``: SHA-256 of the checkpoint before its export. Tables of another checkpoint are not shown.
    """
    other = _of_another(home, meta, source)
    tables = {name: _table(home, name, other) for name in NAMES}
    overall = tables["overall"].value
    rows = [] if overall is None else overall.to_dict("records")
    findings = _records(tables["auc_test"].value)
    mean = next((row for row in findings if metrics.is_mean(row["finding"])), None)
    attached = meta.get("attached", {})
    return _render(
        title=f"{home.name}: {meta['name']}",
        run=home.name,
        meta=meta,
        recipe=meta["recipe"],
        head=_head(home.name, meta, mean, rows),
        why={name: table.why for name, table in tables.items()},
        findings=[row for row in findings if row is not mean],
        overall=rows,
        mean=mean,
        groups=_groups(tables["subgroups"].value),
        data=_records(tables["data"].value),
        scores=_calibration(tables["calibration"].value),
        thresholds=_thresholds(tables["thresholds"].value),
        places=_places(tables["localisation"].value),
        seen=_seen(meta),
        phantom=_phantom(meta),
        fitted=attached.get("calibration"),
        carried=sorted(attached),
        parity=parity,
        gate=gate,
        ancestors=meta["ancestors"],
        gaps=meta["gaps"],
        example=EXAMPLE,
    )


NAMES = ("auc_test", "overall", "data", "subgroups", "calibration", "thresholds", "localisation")


def _of_another(home: paths.Run, meta: dict[str, Any], source: str) -> str:
    """A sentence that the run's tables are of another checkpoint; "" if they are of this one."""
    note = home.predictions / "test.json"
    if note.is_file():
        try:
            weights = paths.read_json(note).get("weights")
        except (UserError, AttributeError):
            weights = None
        same = weights in (source, meta["sha256"])
    else:
        line = sections.read_table(home.tables / "lineage.csv").value
        same = line is not None and len(line) > 0 and line["checkpoint"].iloc[-1] == meta["name"]
    return "" if same else "Not measured: the run's tables are not known to be of this checkpoint."


def _table(home: paths.Run, name: str, other: str) -> sections.Found:
    if other and name != "data":
        return sections.Found(None, other)
    found = sections.read_table(home.tables / f"{name}.csv")
    return found if found.value is not None else sections.Found(None, f"Not measured: {found.why}")


def _records(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    return [] if table is None else table.to_dict("records")


def _groups(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Rows of the groups' means, those by one trait."""
    if table is None:
        return []
    means = table[table["finding"].map(metrics.is_mean) & table["kind"].isin(sections.BASIC)]
    return means.to_dict("records")


def _calibration(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Means over the 14 findings for each kind of probabilities."""
    if table is None:
        return []
    table = table[table["finding"].isin(FINDINGS)]
    if "probabilities" not in table:
        table = table.assign(probabilities="as it came")
    means = table.groupby("probabilities", sort=False)[["probability", "prevalence", "ece", "brier"]].mean()
    return means.reset_index().to_dict("records")


def _thresholds(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    return [] if table is None else table[table["rule"] == "youden"].to_dict("records")


def _places(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Rows of all findings together, one per method."""
    if table is None:
        return []
    rows = table[table["finding"] == sections.ALL].to_dict("records")
    return [
        row | {"method": sections.METHODS.get(str(row.get("method", "")), str(row.get("method", "")))} for row in rows
    ]


def _phantom(meta: dict[str, Any]) -> bool:
    """Whether the network saw drawn films only."""
    datasets = {name for seen in meta["seen"].values() for name in seen}
    return bool(datasets) and all(name.startswith("phantom-") for name in datasets) and not meta["gaps"]


def _seen(meta: dict[str, Any]) -> list[dict[str, Any]]:
    from cxrlib.training import lineage

    return [
        {"role": role, "dataset": dataset, "patients": len(lineage.unpack_numbers(packed))}
        for role, by_dataset in meta["seen"].items()
        for dataset, packed in by_dataset.items()
    ]


def _head(run: str, meta: dict[str, Any], mean: dict[str, Any] | None, overall: list[dict[str, Any]]) -> str:
    """YAML head. Its values are written as JSON, which YAML contains, so no text can end one early."""
    datasets = sorted({name for seen in meta["seen"].values() for name in seen})
    known = ["nih-chestx-ray14"] if film_identity.NIH in datasets else []
    values: dict[str, Any] = {
        "license": "other",
        "license_name": "see-the-card",
        "license_link": "README.md",
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "language": "en",
        "tags": ["chest-x-ray", "medical-imaging", "multi-label-classification", "resnet50", "safetensors"],
        "datasets": known,
        "metrics": ["roc_auc"],
        "model-index": _model_index(run, meta, datasets, mean, overall),
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items() if value not in ([], None)]
    return "\n".join(lines)


def _model_index(run, meta, datasets, mean, overall) -> list[dict[str, Any]]:
    found = []
    if mean is not None and not pd.isna(mean["auc"]):
        found.append({"type": "roc_auc", "name": "mean ROC AUC of 14 findings", "value": round(float(mean["auc"]), 4)})
    for row in overall:
        if "AP" in row["number"] and not pd.isna(row["value"]):
            found.append({"type": "average_precision", "name": row["number"], "value": round(float(row["value"]), 4)})
    if not found:
        return []
    name = "NIH ChestX-ray14" if datasets == [film_identity.NIH] else ", ".join(datasets) or "not named"
    dataset = {"type": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed", "name": name, "split": "test"}
    task = {"type": "image-classification", "name": "multi-label classification"}
    return [{"name": f"{run}/{meta['name']}", "results": [{"task": task, "dataset": dataset, "metrics": found}]}]


def escaped(value: Any) -> str:
    """Text that Markdown shows as it is, in a sentence or a table's cell: marks escaped, on one line."""
    line = " ".join(str(value).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return (
        re.sub(r"([\\`*_{}\[\]()#+!|~$:@^])", r"\\\1", line) if re.search(r"[\\`*_{}\[\]#!|~$]|://|@", line) else line
    )


def _interval(value: Any, low: Any, high: Any, digits: int = 3) -> str:
    if pd.isna(value):
        return "–"
    ends = "" if pd.isna(low) or pd.isna(high) else f" ({low:.{digits}f}–{high:.{digits}f})"
    return f"{value:.{digits}f}{ends}"


def _render(**values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # it is Markdown; ``text`` escapes
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_plain_or_escaped,
    )
    environment.filters |= {
        "finding": lambda name: escaped(display_name(str(name))),
        "number": page.number,
        "count": page.count,
        "percent": page.percent,
        "small": page.small,
    }
    return environment.get_template(TEMPLATE).render(interval=_interval, raw=_Raw, **values)


class _Raw(str):
    """Text that the template does not escape."""


def _plain_or_escaped(value: Any) -> Any:
    """Every value that the template prints is escaped, unless it is marked by ``raw``."""
    return value if isinstance(value, _Raw) else escaped(value)
