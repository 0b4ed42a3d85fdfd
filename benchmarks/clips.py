"""16 uniform frames of each clip at 224 x 224: exactness first, then CPU seconds compared with other readers.

python benchmarks/clips.py CLIPS_FOLDER [--repeats 5] [--max_clips N] [--name clips]
"""

import argparse
import statistics
from pathlib import Path

import common
import numpy as np
import readers

from simple_multimodal.media import index_video, sample_positions

MIN_PSNR = 40.0  # dB against antialiased resizing of full frames, median over clips: below, the output is different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max_clips", type=int, help="read only the first clips")
    parser.add_argument("--name", default="clips", help="name of the results")
    options = parser.parse_args()
    files = sorted(str(path) for path in options.folder.iterdir() if path.is_file())[: options.max_clips]
    positions = {path: sample_positions(index_video(path), 16) for path in files}

    # The check: which readers deliver, and how close they are to full frames with antialiased resizing.
    failed: dict[str, list[str]] = {name: [] for name in readers.READERS}
    psnr: dict[str, list[float]] = {name: [] for name in readers.READERS}
    for path in files:
        expected = readers.reference(path, positions[path]).astype(float)
        for name, read in readers.READERS.items():
            frames, _, _ = common.measured(lambda read=read, path=path: read(path, positions[path]))
            if frames is None or frames.shape != expected.shape:
                failed[name].append(Path(path).name)
            else:
                psnr[name].append(10 * np.log10(255**2 / max(((frames - expected) ** 2).mean(), 1e-3)))

    calls = {name: (lambda path, read=read: read(path, positions[path])) for name, read in readers.READERS.items()}
    seconds = common.interleaved(files, calls, options.repeats)
    classes = _classes(files)
    table = {}
    for name in readers.READERS:
        row = {}
        for label, members in classes.items():
            good = [path for path in members if Path(path).name not in failed[name]]
            own = common.total(seconds["ours"], good)
            row[label] = common.total(seconds[name], good) / own if good else None
        table[name] = {
            "failed": failed[name],
            "psnr_median": statistics.median(psnr[name]),
            "psnr_min": min(psnr[name]),
            "is_valid": statistics.median(psnr[name]) >= MIN_PSNR,
            "times_ours": row,
        }
    own = {label: common.total(seconds["ours"], members) for label, members in classes.items()}
    print(f"{'CPU time, times ours':28s}" + "".join(f"{label[:18]:>20s}" for label in classes) + "   failed   PSNR")
    print(f"{'ours, seconds':28s}" + "".join(f"{own[label]:20.3f}" for label in classes))
    for name, entry in table.items():
        cells = "".join(f"{'-' if v is None else format(v, '.2f'):>20s}" for v in entry["times_ours"].values())
        note = "" if entry["is_valid"] else "  (below the limit)"
        print(f"{name:28s}{cells}{len(entry['failed']):9d}{entry['psnr_median']:7.1f}{note}")
    common.save(
        options.name,
        {
            "classes": {label: len(members) for label, members in classes.items()},
            "ours_cpu_seconds": own,
            "readers": table,
            "cpu_seconds": {name: {Path(p).name: v for p, v in values.items()} for name, values in seconds.items()},
        },
    )
    _plot(table, list(classes), options.name)


def _classes(files: list[str]) -> dict[str, list[str]]:
    """Group the clips by what determines the cost of a frame."""
    classes: dict[str, list[str]] = {}
    for path in files:
        index = index_video(path)
        share = float(index.table.is_unreferenced.mean()) if index.table is not None else 0.0
        labels = ["h264"] if index.codec == "h264" else []
        if index.codec == "h264":
            labels.append("h264 disposable" if share > 0.05 else "h264 none disposable")
            labels += ["h264 half disposable"] if share > 0.4 else []
        else:
            labels.append(index.codec if index.codec in ("mpeg1video", "mpeg4") else "other")
        labels += ["under 2 s"] if index.duration_seconds < 2 else []
        for label in labels:
            classes.setdefault(label, []).append(path)
    return classes


def _plot(table: dict, labels: list[str], name: str) -> None:
    """Plot the table as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    readers_shown = [reader for reader in table if reader != "ours"]
    figure, axis = pyplot.subplots(figsize=(12, 4.5))
    for number, reader in enumerate(readers_shown):
        values = [table[reader]["times_ours"][label] or 0 for label in labels]
        axis.bar(np.arange(len(labels)) + 0.1 * number, values, 0.09, label=reader)
    axis.axhline(1, color="black", linewidth=1)
    axis.set_xticks(np.arange(len(labels)) + 0.1 * (len(readers_shown) - 1) / 2, labels, rotation=15)
    axis.set_ylabel("CPU time, times ours")
    axis.legend(fontsize=8, ncols=2)
    axis.set_title("16 uniform frames of a clip at 224 x 224, one thread")
    figure.tight_layout()
    figure.savefig(common.RESULTS / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
