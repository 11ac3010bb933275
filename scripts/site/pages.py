"""Which pages the site has, in which order; a page that is not named here follows by itself."""

from __future__ import annotations

from pathlib import Path

Nav = list[dict[str, object]]

SECTIONS: dict[str, list[str]] = {
    "Start": ["index.md", "first_minute.md", "tutorial.md"],
    "How to": [
        "how-to/own_data.md",
        "how-to/own_encoder.md",
        "how-to/own_interface.md",
        "how-to/own_task.md",
        "how-to/several_gpus.md",
        "how-to/small_memory.md",
        "how-to/reproduce_the_papers.md",
        "pruning.md",
        "pseudo_labels.md",
        "scale.md",
        "export.md",
    ],
    "Methods": ["methods/unified_fusion.md", "methods/harmonifuse.md", "papers.md"],
    "Results": ["experiments.md", "performance.md", "reliability.md"],
    "Reference": [
        "reference/recipe.md",
        "reference/parts.md",
        "reference/commands.md",
        "reference/python.md",
        "reference/types.md",
        "reference/contracts.md",
    ],
    "Decisions": ["adr/README.md"],
}
NEW = {"how-to": "How to", "methods": "Methods", "reference": "Reference", "adr": "Decisions"}


def navigation(docs: Path) -> Nav:
    """Sections with their pages; one that is new goes to its folder's section, else to Results."""
    found = {section: [*pages] for section, pages in SECTIONS.items()}
    named = {page for pages in found.values() for page in pages}
    for path in sorted(docs.rglob("*.md")):
        page = path.relative_to(docs).as_posix()
        if page not in named and not page.startswith("source/"):
            found[NEW.get(page.partition("/")[0], "Results")].append(page)
    return [{section: [*pages]} for section, pages in found.items()]
