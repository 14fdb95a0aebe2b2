"""Figures that ``hash3d plan`` prints, from benchmarks/results/plans.json (``python benchmarks/plans.py``)."""

from __future__ import annotations

from docs.figures import FigureError, Passage, load, pick, rows

_RANGES = "--elevation=-15,45 --radius 3,3.5 --timesteps 20,980 --vae KL-VAE --eta 0.5"
_KL = "--eta 0.5 --vae KL-VAE"
_FOUND = ("hit rate", "x, views served from the cache", "bound on the U-Net's speed-up", "bound on a step's speed-up")
SYSTEMS = "docs/systems"


def plan(command: str, *labels: str) -> list[str]:
    """What a plan says, as it prints it, without units and what follows them."""
    try:
        printed = load("plans.json")[command]
        return [printed[label].split(" ")[0].rstrip("x,") for label in labels]
    except KeyError as missing:
        raise FigureError(f"benchmarks/results/plans.json has no {missing} of {command!r}") from None


def memory(command: str) -> list[str]:
    """MiB of an entry, entries that the budget holds, and GiB that hold every view."""
    entry, every_view = plan(command, "memory of one entry", "memory that holds every view")
    return [entry, slots(command), every_view]


def slots(command: str) -> str:
    """Entries that the budget holds: "2.00 GiB, 402 entries"."""
    return load("plans.json")[command]["memory of the table"].split(", ")[1].split(" ")[0]


def table_row(page: str, words: str, command: str) -> Passage:
    text = f"| {words} | {{}} | {{}} | {{}}x | {{}}x |"
    return Passage(f"{SYSTEMS}/{page}.md", text, lambda: plan(command, *_FOUND))


def printed(page: str, command: str, *, memory: bool) -> Passage:
    """A block with the command and the lines that it prints."""
    text = f"hash3d plan {command} " + " ".join(f"{label} {{}}{'x' if 'bound' in label else ''}" for label in _FOUND)
    if memory:
        text += " memory of the table {} GiB, {} entries"
    held = (lambda: [*plan(command, "memory of the table"), slots(command)]) if memory else list
    return Passage(f"{SYSTEMS}/{page}.md", text, lambda: [*plan(command, *_FOUND), *held()])


def hit_rates(way: str) -> Passage:
    """A line of ``python benchmarks/hit_rates.py``."""
    cells = [cell for name, cell in pick(rows("hit-rates.md"), **{"": way}).items() if name]
    return Passage("docs/plan.md", f"| {way} | {{}} | {{}} | {{}} |", lambda: cells)


def of_the_other(indexing: int) -> list[float]:
    """Hit rates in percent by the simulation that shares no code with this one."""
    return [100 * rates[indexing] for rates in load("hit-rates-other.json")["rates"].values()]


PASSAGES = (
    Passage(
        "docs/plan.md",
        "has {:.0f}, {:.0f} and {:.0f}% with the released code's indexing, and {:.0f}, {:.0f} and {:.0f}%, "
        "{:.0f}, {:.0f} and {:.0f}%, {:.0f}, {:.0f} and {:.0f}% with verified cells in 200, 1,000 and 100,000 "
        "buckets",
        lambda: [rate for indexing in range(4) for rate in of_the_other(indexing)],
    ),
    *(hit_rates(row[""]) for row in rows("hit-rates.md")),
    table_row("dreamgaussian", "as it stands: Zero123, the paper's grids", f"dreamgaussian {_KL}"),
    table_row("dreamgaussian", "with `--grids pose`", f"dreamgaussian {_KL} --grids pose"),
    table_row(
        "dreamgaussian",
        "with `--grids pose --unet sd21 --radius 2.5,2.5`",
        f"dreamgaussian {_KL} --grids pose --unet sd21 --radius 2.5,2.5",
    ),
    table_row("gaussiandreamer", "as it stands: 2 GiB, the paper's grids", f"gaussian-dreamer {_KL}"),
    table_row("gaussiandreamer", "with `--memory-budget 16GiB`", f"gaussian-dreamer {_KL} --memory-budget 16GiB"),
    table_row("gaussiandreamer", "with `--grids pose`", f"gaussian-dreamer {_KL} --grids pose"),
    Passage(
        f"{SYSTEMS}/gaussiandreamer.md",
        "takes {} MiB, so 2 GiB remember the last {} of 4,800 views, and timesteps rarely come back in that time. "
        "What helps is memory ({} GiB hold every view)",
        lambda: memory(f"gaussian-dreamer {_KL}"),
    ),
    table_row("stable-dreamfusion", "with `--steps 10000 --unet sd21`", f"{_RANGES} --steps 10000 --unet sd21"),
    table_row("stable-dreamfusion", "with `--steps 3750 --unet zero123`", f"{_RANGES} --steps 3750 --unet zero123"),
    Passage(
        f"{SYSTEMS}/stable-dreamfusion.md",
        "an entry of Stable Diffusion takes {} MiB, so 2 GiB remember {} views, and all 10,000 would take {} GiB. "
        "An entry of Zero123 takes {} MiB",
        lambda: [
            *memory(f"{_RANGES} --steps 10000 --unet sd21"),
            *plan(f"{_RANGES} --steps 3750 --unet zero123", "memory of one entry"),
        ],
    ),
    printed("threestudio", "dreamfusion --eta 0.5 --memory-budget 8GiB --vae KL-VAE", memory=True),
    printed(
        "threestudio", "dreamfusion --eta 0.9 --grids 30,30,.5,100 --memory-budget 8GiB --vae KL-VAE", memory=False
    ),
    printed("threestudio", f"zero123 {_KL}", memory=False),
    Passage(
        "docs/decide.md",
        "{} MiB an entry of SD at k = 2, so 2 GiB hold {}. With the views and timesteps of `hash3d plan "
        "dreamfusion --eta 0.5` that turns a hit rate of {} into {}; of `gaussian-dreamer`, {} into {}",
        lambda: [
            *plan("dreamfusion --eta 0.5 --feature-dtype int8", "memory of one entry"),
            slots("dreamfusion --eta 0.5 --feature-dtype int8"),
            *(
                figure
                for system in ("dreamfusion", "gaussian-dreamer")
                for words in ("", " --feature-dtype int8")
                for figure in plan(f"{system} --eta 0.5{words}", "hit rate")
            ),
        ],
    ),
)
