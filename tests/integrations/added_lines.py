"""The lines that the examples' pages add to other projects' scripts."""

from __future__ import annotations

import re
from pathlib import Path

from foreign_code import ROOT

ATTACH = "        hash3d_dreamgaussian.attach(self, eta=0.5)"
REFINE = "        hash3d_dreamgaussian.attach_refine(self)"
LAST = "                self.guidance_zero123.get_img_embeds(self.input_img_torch)"
# file: line of upstream's after which they go -> lines
ADDED = {
    "dreamgaussian": {
        "main.py": {
            "import rembg": ["import hash3d_dreamgaussian"],
            LAST: [ATTACH],
            "            # guidance loss": ["            self.hash3d.look(vers, hors, radii)"],
        },
        "main2.py": {"import rembg": ["import hash3d_dreamgaussian"], LAST: [REFINE]},
    },
    "stable_dreamfusion": {
        "main.py": {
            "        trainer.default_view_data = train_loader._data.get_default_view_data()": [
                "        import hash3d_stable_dreamfusion",
                "        hash3d_stable_dreamfusion.attach(trainer, eta=0.5)",
            ]
        }
    },
    "gaussiandreamer": {"launch.py": {"    import threestudio": ["    import hash3d_gaussiandreamer"]}},
}


def with_lines(folder: Path, system: str, name: str) -> str:
    """Upstream's text with the lines put in."""
    return insert((folder / name).read_text(encoding="utf-8"), ADDED[system][name], name)


def insert(text: str, wanted: dict[str, list[str]], name: str) -> str:
    lines = text.split("\n")
    for anchor, added in wanted.items():
        assert lines.count(anchor) == 1, f"{name} has {anchor.strip()!r} {lines.count(anchor)} times"
        place = lines.index(anchor) + 1
        lines[place:place] = added
    return "\n".join(lines)


def adapters_lines(script: str) -> dict[str, str]:
    """What docs/adapters.md has under the name of ``script``: pieces of its text, and what takes their places."""
    page = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    after = page[page.index(f"`{script}`") :]
    block = re.search(r"^```text\n(.*?)^```", after, flags=re.MULTILINE | re.DOTALL)[1]
    changed = {}
    for part in block.rstrip("\n").split("\n\n"):
        how, anchor, lines = re.fullmatch(r'(after|instead of) "(.*)":\n(.*)', part, flags=re.DOTALL).groups()
        changed[f"{anchor}\n"] = (f"{anchor}\n" if how == "after" else "") + f"{lines}\n"
    return changed
