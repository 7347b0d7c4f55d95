"""Ours against verl's functions and a memory copy on a CUDA device: ``make bench-gpu``, or run this file.

First our numbers are held against verl's own in float64 on the CPU, on fresh inputs; a case that is off is not timed.
Then CUDA events time each call, with the time the host takes to launch it, on inputs that the device's cache no longer
holds: batches of four times its size are gone through in turn. The copy moves, on the same device in the same run, as many bytes
as the call must read and write at least. Every call is also made once where torch says what makes the host wait.

Without a CUDA device only the first part is done, small and on the CPU: a self-test, in which nothing is timed.
"""

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from digit_sort.machine import describe  # noqa: E402
from kernels import CASES as ALL  # noqa: E402 (beside this file)
from kernels import inputs  # noqa: E402

from rl_estimators import backends  # noqa: E402

SHAPES = ((256, 1024), (1024, 4096), (1024, 8192), (512, 32768))
SMALL = ((6, 40), (8, 300))
# The one is about strings, the other asks the device whether a masked token has a reward.
ON_THE_HOST = ("groups", "gae + carry")
CASES = {name: case for name, case in ALL.items() if name not in ON_THE_HOST}
TRITON = ("gae", "reinforce_pp", "grpo", "remax", "whitening")  # what has triton kernels
UIDS = ("grpo",)  # strings come from the host, so the host waits until they are over
OTHERWISE = ("gmpo",)  # verl lets each token's own advantage choose the side of the clip: held against ours
DRAWN = ("clip_cov",)  # draws tokens: timed, not held against anything
TOLERANCE = 1e-4  # of the largest number: sums over a batch in float32
CACHE = 4  # times the device's L2 cache that the batches of a shape take up, and
LEAST = 16  # bytes a token that every case reads and writes
SECONDS, REPEATS = 1.0, 50  # for one contestant, whichever is reached first
DEVICE = torch.device("cuda")
Batch = dict[str, Any]


def placed(batch: Batch, device: torch.device, dtype: torch.dtype = torch.float32) -> Batch:
    """The batch's tensors there, floating ones in that dtype; "new" stays what is trained."""
    moved = {}
    for name, x in batch.items():
        if isinstance(x, torch.Tensor):
            x = x.detach().to(device, dtype if x.is_floating_point() else None)
        moved[name] = x.requires_grad_() if name == "new" else x
    return moved


def contestants(case: str, device: torch.device) -> dict[str, tuple[Callable[[Batch], Any], str | None]]:
    """verl, and ours with each backend that has a kernel of its own and works there."""
    theirs, ours, _ = CASES[case]
    found: dict[str, tuple[Callable[[Batch], Any], str | None]] = {
        "verl": (theirs, None),
        "torch": (ours, "torch"),
    }
    with backends.use_backend("triton"):
        works = backends.choose.name_for(torch.ones(1, device=device)) == "triton"
    if works and case in TRITON:
        found["triton"] = (ours, "triton")
    return found


def tensors(found: Any) -> list[torch.Tensor]:
    """A call's numbers: advantages and returns, or the gradient of a loss."""
    some = found if isinstance(found, tuple | list) else (found,)
    return [x for x in some if isinstance(x, torch.Tensor)]


def check(case: str, rows: int, length: int, device: torch.device) -> dict[str, Any]:
    """Errors of each of ours, relative to the largest number, against float64 on the CPU."""
    theirs, ours, _ = CASES[case]
    batch = inputs(rows, length, "prefix")
    valid = batch["mask"].bool()
    batch["rewards"] *= valid  # verl's grpo counts what stands at masked tokens
    judge = ours if case in OTHERWISE else theirs
    with backends.use_backend("torch"):
        wanted = [x.double() for x in tensors(judge(placed(batch, torch.device("cpu"), torch.float64)))]
    errors = {}
    for name, (call, backend) in contestants(case, device).items():
        if name == "verl":
            continue
        with backends.use_backend(backend):
            actual = [x.double().cpu() for x in tensors(call(placed(batch, device)))]
        errors[name] = max(map(lambda a, w: off(a, w, valid), actual, wanted), default=math.nan)
    right = all(error <= TOLERANCE for error in errors.values())  # false for NaN
    against = "ours in float64" if case in OTHERWISE else "verl's in float64"
    return {
        "case": case,
        "rows": rows,
        "length": length,
        "errors": errors,
        "against": against,
        "right": right,
    }


def off(actual: torch.Tensor, wanted: torch.Tensor, valid: torch.Tensor) -> float:
    """The largest difference where something counts, over the largest number there."""
    if wanted.shape == valid.shape:
        actual, wanted = actual[valid], wanted[valid]
    return float((actual - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def waits(call: Callable[[], Any]) -> list[str]:
    """What in the call makes the host wait for the device, as torch sees it."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]


def seconds(call: Callable[[Batch], Any], batches: list[Batch]) -> float:
    """Median time of a call on the device by CUDA events, each on the next of the batches."""
    call(batches[0])
    call(batches[-1])
    torch.cuda.synchronize()
    took, begin = [], time.perf_counter()
    for number in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        kept = call(batches[number % len(batches)])
        end.record()
        end.synchronize()
        took.append(start.elapsed_time(end) / 1e3)
        del kept
        if time.perf_counter() - begin > SECONDS and number >= 2:
            break
    return statistics.median(took)


def copy_seconds(size: int, count: int) -> float:
    """Median time of a copy on the device that reads and writes ``size`` bytes together."""
    numbers = max(size // 8, 1)
    pairs = [{name: torch.ones(numbers, device=DEVICE) for name in ("to", "from")} for _ in range(count)]
    return seconds(lambda pair: pair["to"].copy_(pair["from"]), pairs)


def memory(call: Callable[[Batch], Any], batch: Batch) -> int:
    """Bytes by which a call raises the peak of the device's memory, outputs included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = call(batch)
    torch.cuda.synchronize()
    assert kept is not None
    return torch.cuda.max_memory_allocated() - before


def race(case: str, batches: list[Batch]) -> dict[str, Any]:
    """Time, memory and waits of every contestant on the device."""
    rows, length = batches[0]["mask"].shape
    size = CASES[case][2] * rows * length
    line: dict[str, Any] = {"case": case, "rows": rows, "length": length, "bytes": size, "seconds": {}}
    line |= {"waits": {}, "peak_bytes": {}}
    for name, (call, backend) in contestants(case, DEVICE).items():
        with backends.use_backend(backend):
            line["seconds"][name] = seconds(call, batches)
            line["waits"][name] = waits(lambda call=call: call(batches[0]))
            line["peak_bytes"][name] = memory(call, batches[1])
    line["seconds"]["copy"] = copy_seconds(size, len(batches))
    return line


def races(shapes: tuple[tuple[int, int], ...], right: set[str]) -> Iterator[dict[str, Any]]:
    """All cases whose numbers are right; prints a line each."""
    cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20)
    for rows, length in shapes:
        count = max(3, min(64, math.ceil(CACHE * cache / (LEAST * rows * length))))
        batches = [placed(inputs(rows, length, "prefix"), DEVICE) for _ in range(count)]
        for case in CASES:
            if case in right:
                yield (line := race(case, batches))
                print(shown(line), flush=True)


def shown(line: dict[str, Any]) -> str:
    """One line of the table."""
    took = line["seconds"]
    ours = [name for name in took if name not in ("verl", "copy")]
    parts = []
    for name in ours:
        share, count = took["copy"] / took[name], len(line["waits"][name])
        parts.append(f"{name} {took['verl'] / took[name]:7.1f}x verl, {share:4.0%} of a copy, {count} waits")
    return f"{line['rows']:5d} x {line['length']:<6d}{line['case']:13s}{'  '.join(parts)}"


def waiting(found: list[dict[str, Any]]) -> list[str]:
    """Sentences on ours that made the host wait where nothing comes from the host."""
    return [
        f"{line['case']} with {name} made the host wait at {', '.join(places)}"
        for line in found
        for name, places in line["waits"].items()
        if places and name != "verl" and line["case"] not in UIDS
    ]


def bandwidth() -> float:
    """Bytes a second, read and written, of a copy of 1 GiB on the device."""
    return 2**31 / copy_seconds(2**31, 2)


def plot(results: dict[str, Any], path: Path) -> None:
    """Speed against verl, and against a copy of the same bytes, for the largest batch that all cases were timed on."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, length = max(((x["rows"], x["length"]) for x in results["races"]), key=math.prod)
    lines = [x for x in results["races"] if (x["rows"], x["length"]) == (rows, length)]
    bars = [
        (f"{x['case']} ({name})", x["seconds"], name) for x in lines for name in x["waits"] if name != "verl"
    ]
    figure = Figure(figsize=(11, 1.5 + 0.32 * len(bars)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    names = [name for name, _, _ in bars]
    left.barh(names, [took["verl"] / took[who] for _, took, who in bars])
    left.set_xscale("log")
    left.axvline(1, color="black", linewidth=0.8)
    left.set_xlabel("times as fast as verl's function")
    right.barh(names, [took["copy"] / took[who] for _, took, who in bars], color="tab:orange")
    right.set_xlabel("share of a copy's speed (1: reads and writes at the device's rate)")
    left.invert_yaxis()
    figure.suptitle(f"{rows} x {length} on {results['machine']['gpu']}")
    figure.savefig(path)


def main() -> int:
    """Check, time, write a JSON and a PNG; 1 if numbers were wrong or something made the host wait."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tiny", action="store_true", help="the self-test on the CPU, even where there is CUDA"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    cuda = torch.cuda.is_available() and not options.tiny
    device = DEVICE if cuda else torch.device("cpu")
    if not cuda:
        print("CUDA is not used: a self-test on the CPU, small; nothing is timed")
    torch.manual_seed(time.time_ns() % 2**31)  # fresh inputs
    results: dict[str, Any] = {"machine": describe(), "device": device.type, "seed": torch.initial_seed()}
    judged = [case for case in CASES if case not in DRAWN]
    checked = [check(case, *shape, device) for shape in (SHAPES[:2] if cuda else SMALL) for case in judged]
    results["checked"] = checked
    wrong = {one["case"] for one in checked if not one["right"]}
    for one in checked:
        errors = ", ".join(f"{name} {error:.1e}" for name, error in one["errors"].items())
        print(
            f"{one['rows']:5d} x {one['length']:<6d}{one['case']:13s}{errors}{'' if one['right'] else '  WRONG'}"
        )
    if cuda:
        results["copy_bytes_per_second"] = bandwidth()
        print(f"a copy of 1 GiB: {results['copy_bytes_per_second'] / 1e12:.2f} TB/s read and written")
        results["races"] = list(races(SHAPES, {*CASES} - wrong))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "kernels_gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    if cuda:
        plot(results, options.out / "kernels_gpu.png")
    problems = [f"{case}: wrong numbers" for case in sorted(wrong)] + waiting(results.get("races", []))
    print("\n".join(problems) or "all right" + (", and nothing of ours made the host wait" if cuda else ""))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
