"""The plans of a half day and of two days, rendered into README.md: python workshop/plan.py

plan.yaml has what is taught; how long the machines need is read from data/results/laptop.json, which says how that was measured.
"""
from __future__ import annotations

import json, math, re
from pathlib import Path

import yaml

from groot_cookbook.core import data_dir, replacing

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- made by plan.py -->\n", "<!-- end -->"


def clock(minutes: int) -> str: return f"{minutes // 60}:{minutes % 60:02}"


def table(rows: list[dict], seconds: dict[str, float]) -> list[str]:  # chapter -> s
    "One plan as Markdown. The clock counts talk, work and the machine's minutes, rounded up; it starts again with each day."
    lines, now = ["| from | what | chapter | talk + work + machine, min | learners | say | pitfalls |", "|---|---|---|---|---|---|---|"], 0
    for row in rows:
        if row["title"].startswith("Day ") and now:
            lines.append(f"| {clock(now)} | end of the day | | | | | |")
            now = 0
        run = [name for name in seconds if name[:2] in row.get("runs", [])]
        machine = math.ceil(sum(seconds[name] for name in run) / 60)
        spent = " + ".join(str(n) for n in (row["talk"], row["work"], *([machine] if run else [])))
        links = ", ".join(f"[{name}](../nbs/{name}.ipynb) ({seconds[name]:.0f} s)" for name in run)
        lines.append(f"| {clock(now)} | {row['title']} | {links} | {spent} | {row['do']} | {row['say']} | {row['pitfalls']} |")
        now += row["talk"] + row["work"] + machine
    return [*lines, f"| {clock(now)} | end | | | | | |"]


def plans() -> str:
    "Both plans, with the source of their timings."
    measured, found = json.loads((data_dir() / "results" / "laptop.json").read_text()), yaml.safe_load((HERE / "plan.yaml").read_text(encoding="utf-8"))
    seconds = measured["rows"][0]["chapters"]
    source = (f"Seconds in brackets are a chapter's whole run in the `laptop` profile, by `{measured['command']}` on {measured['hardware']}, {measured['date']} ({sum(seconds.values()) / 60:.1f} minutes in all); "
              "learners' copies run the `smoke` sizes and need less. Shared or older machines need more.")
    return "\n".join([source, *(line for name, rows in found.items() for line in ("", f"### {name[0].upper()}{name[1:]}", "", *table(rows, seconds)))]) + "\n"


def rendered(text: str) -> str:
    "README.md with its plans made anew."
    return re.sub(f"(?<={re.escape(BEGIN)}).*?(?={re.escape(END)})", lambda _: plans(), text, flags=re.S)


def render(path: Path = HERE / "README.md") -> None:
    "Write the plans, if anything in them has changed."
    text = path.read_text(encoding="utf-8")
    if (new := rendered(text)) == text: return
    with replacing(path) as part: part.write_text(new, encoding="utf-8")


if __name__ == "__main__": render()
