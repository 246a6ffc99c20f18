"""Table, summary and plots of what `benchmarks/attention.py` has measured."""

from statistics import geometric_mean

from benchmarks.attention_contenders import EXACT, NYSTROM, OURS, PLAIN, TORCH_NYSTROM

MODES = ("forward", "forward+backward")


def print_table(rows):
    """A line per contender, and its time and memory as multiples of ours."""
    for mode in MODES:
        case = [row for row in rows if row["mode"] == mode]
        ours = next(row for row in case if row["contender"] == OURS)
        print(f"\nN = {ours['length']:,}, {ours['num_landmarks']} landmarks, {mode}")
        print(
            f"{'':<20}{'ms':>10}{'(min':>10}{'max)':>10}{'x ours':>8}{'extra MiB':>11}{'x ours':>8}"
        )
        for row in case:
            print(
                f"{row['contender']:<20}{row['milliseconds']:10.2f}{row['min']:10.2f}"
                f"{row['max']:10.2f}{row['milliseconds'] / ours['milliseconds']:8.2f}"
                f"{row['extra_megabytes']:11.1f}"
                f"{row['extra_megabytes'] / max(ours['extra_megabytes'], 0.1):8.2f}",
                flush=True,
            )


def print_summary(rows):
    """How many times faster ours is, over the whole grid."""
    table = _tabulate(rows, "milliseconds")
    for mode in MODES:
        print(f"\n{mode}: times as fast as")
        fastest = {
            case: min(times[name] for name in TORCH_NYSTROM) / times[OURS]
            for case, times in table.items()
            if case[2] == mode
        }
        worst = min(fastest, key=fastest.get)
        print(
            f"  the faster PyTorch Nyström: {geometric_mean(fastest.values()):.2f} in geometric "
            f"mean, least {fastest[worst]:.2f} at N = {worst[0]:,}, {worst[1]} landmarks"
        )
        for name in (PLAIN, *EXACT):
            for num_landmarks in sorted({case[1] for case in table}):
                ratios = [
                    f"{case[0]:,}: {times[name] / times[OURS]:.2f}"
                    for case, times in sorted(table.items())
                    if case[1:] == (num_landmarks, mode) and name in times
                ]
                if ratios:
                    print(f"  {name}, {num_landmarks} landmarks: " + "  ".join(ratios))
    memory = _tabulate(rows, "extra_megabytes")
    case = memory.get((16384, 64, MODES[1]))
    if case:
        print(
            f"\nextra memory, N = 16,384, 64 landmarks, {MODES[1]}: ours {case[OURS]:.0f} MiB, "
            f"{case[OURS] / case[PLAIN]:.2f} of eq. 9's"
        )


def draw(rows, directory):
    """attention_time.png and attention_memory.png: forward and backward against N, log-log."""
    directory.mkdir(parents=True, exist_ok=True)
    for what, column, label in (
        ("time", "milliseconds", "milliseconds"),
        ("memory", "extra_megabytes", "MiB beyond the inputs"),
    ):
        make_figure(rows, column, label).savefig(directory / f"attention_{what}.png", dpi=120)


def make_figure(rows, column, label):
    """A column of forward and backward against N: a panel for each number of landmarks."""
    from matplotlib.figure import Figure

    table = _tabulate(rows, column)
    landmarks = sorted({case[1] for case in table})
    lengths = sorted({case[0] for case in table})
    figure = Figure(figsize=(5 * len(landmarks), 4), layout="constrained")
    panels = figure.subplots(1, len(landmarks), sharey=True, squeeze=False)[0]
    for panel, num_landmarks in zip(panels, landmarks, strict=True):
        for name in (*NYSTROM, *EXACT):
            # Exact attention, measured once, has no landmarks: it belongs into each panel.
            points = sorted(
                (case[0], values[name])
                for case, values in table.items()
                if name in values
                and case[2] == MODES[1]
                and (name in EXACT or case[1] == num_landmarks)
            )
            style = {"linestyle": "--"} if name in EXACT else {}
            if name == OURS:
                style = {"linewidth": 3, "color": "black"}
            if points:
                panel.loglog(*zip(*points, strict=True), marker="o", label=name, **style)
        panel.set(title=f"{num_landmarks} landmarks", xlabel="N (tokens)")
        panel.set_xticks(lengths, [f"{length:,}" for length in lengths], rotation=30)
        panel.minorticks_off()
        panel.yaxis.set_major_formatter("{x:,g}")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"{MODES[1]}, {label}", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def _tabulate(rows, column):
    """{(length, landmarks, mode): {contender: value}}"""
    table = {}
    for row in rows:
        case = int(row["length"]), int(row["num_landmarks"]), row["mode"]
        table.setdefault(case, {})[row["contender"]] = float(row[column])
    return table
