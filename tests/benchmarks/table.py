"""The one table of a run: ours beside references, timed in turn, and the floor of each row.

The fixture `table` is the same object for all benchmarks of a run. Its rows are printed as they are
measured, and all together at the end. ``SKATR_TABLE=docs/performance.rst:README.md`` (paths, parted
as in PATH) also writes them into these files, between their two lines with the words "speed table".
"""

import os
import platform
import statistics
import time
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

N_THREADS = 2
_MARKS = {".rst": "..", ".md": "<!--"}


def seconds(call, *arguments):
    """Wall seconds of a call."""
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


@cache
def matrix_rate(dtype=torch.float32, n=2048):
    """Operations a second of products of n x n matrices: the most that anything here can reach."""
    before = torch.get_num_threads()
    torch.set_num_threads(N_THREADS)
    a = torch.rand(n, n, generator=torch.Generator().manual_seed(0)).to(dtype)
    took = [seconds(torch.mm, a, a) for _ in range(8)]
    torch.set_num_threads(before)
    return 2 * n**3 / statistics.median(took[1:])


def counter():
    """Return a context that counts the operations of all matrix products, attention included."""

    def attention(query, key, value, *rest, **options):
        *batch, n_query, dim = query
        return 4 * torch.Size(batch).numel() * n_query * key[-2] * dim

    def attention_backward(gradient, query, key, value, *rest, **options):
        return 2.5 * attention(query, key, value)  # scores anew, and four products

    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # not in torch's table
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    mapping = {flash: attention, backward: attention_backward}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def operations(call):
    """Floating-point operations of all matrix products in a call."""
    with counter() as counted:
        call()
    return counted.get_total_flops()


@dataclass
class Row:
    """Ours beside a reference, smaller being better; `floor` is the least that ours could be."""

    what: str
    ours: float
    against: str = ""
    reference: float | None = None
    ratio: float | None = None  # ours / reference
    limit: float | None = None  # of the ratio or, where there is no reference, of ours
    unit: str = "s"
    floor: float | None = None
    in_readme: bool = False

    @property
    def met(self):
        """Whether the limit is kept; None where there is none."""
        found = self.ours if self.reference is None else self.ratio
        return None if self.limit is None else found <= self.limit

    def cells(self):
        """The row as text."""
        return [
            self.what,
            _with_unit(self.ours, self.unit),
            f"{self.against} {_with_unit(self.reference, self.unit)}".strip(),
            _number(self.ratio),
            _number(self.limit)
            if self.reference is not None
            else _with_unit(self.limit, self.unit),
            {None: "", True: "yes", False: "**no**"}[self.met],
            _with_unit(self.floor, self.unit),
        ]


HEAD = ["what", "ours", "reference", "ratio", "limit", "met", "floor"]


def _number(value):
    if value is None:
        return ""
    return f"{value:.2f}" if 0.1 <= value < 100 else f"{value:.3g}"


def _with_unit(value, unit):
    """Seconds as s, ms or us, whichever reads best."""
    if value is None:
        return ""
    if unit == "s" and 0 < abs(value) < 1:
        value, unit = (value * 1e3, "ms") if abs(value) >= 1e-3 else (value * 1e6, "us")
    return f"{value:.3g} {unit}".strip()


class Table:
    """Rows in the order of their measurement."""

    def __init__(self):
        self.rows = []

    def compare(
        self,
        what,
        ours,
        references,
        *,
        limit=None,
        pairs=5,
        floor=None,
        warm_up=True,
        in_readme=False,
        check=True,
    ):
        """Time ours and each of `references` in turn, `pairs` times; return the new rows.

        All are functions of no arguments, references in a dict by the name that the row shows. What
        one returns, if it is a float, are its seconds (of a step, say), else the call is timed.
        `limit` is one number for all, or a dict by name. The ratio is the median over the pairs.
        Where a limit is missed the test fails, after its row is in the table; ``check=False`` waits
        for `check`, so that more rows can follow.
        """
        calls = [ours, *references.values()]
        if warm_up:
            for call in calls:
                call()
        rounds = [[_seconds_of(call) for call in calls] for _ in range(pairs)]
        own, *others = (list(column) for column in zip(*rounds, strict=True))
        limits = limit if isinstance(limit, dict) else dict.fromkeys(references, limit)
        new = [
            Row(
                what,
                statistics.median(own),
                name,
                statistics.median(theirs),
                statistics.median(a / b for a, b in zip(own, theirs, strict=True)),
                limits.get(name),
                floor=floor,
                in_readme=in_readme,
            )
            for name, theirs in zip(references, others, strict=True)
        ]
        return self._keep(new or [Row(what, statistics.median(own), floor=floor)], check)

    def add(self, what, ours, reference=None, *, check=True, **columns):
        """Add what was measured otherwise, in any unit; the ratio is ours / reference."""
        ratio = None if reference is None else ours / reference
        return self._keep([Row(what, ours, reference=reference, ratio=ratio, **columns)], check)

    def _keep(self, new, check):
        self.rows += new
        for row in new:
            print("\n" + " | ".join(filter(None, row.cells())), end="", flush=True)
        if check:
            self.check(new)
        return new

    def check(self, rows):
        """Fail where a limit is missed."""
        missed = [" | ".join(row.cells()) for row in rows if row.met is False]
        assert not missed, "above the limit: " + "; ".join(missed)

    def header(self):
        """When, where and how it was measured."""
        name, fast = processor()
        rates = f"matrix products at {matrix_rate() / 1e9:.0f} GFLOP/s in float32"
        if fast:  # elsewhere one product takes a minute, and nothing here computes in it
            rates += f" and {matrix_rate(torch.bfloat16) / 1e9:.0f} in bfloat16"
        whole = f"{name} ({', '.join(fast)})" if fast else name
        return f"{date.today()}, {whole}, torch {torch.__version__}, {N_THREADS} threads; {rates}"

    def text(self):
        """The table for a terminal."""
        lines = [HEAD, *(row.cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rows = [
            "  ".join(cell.ljust(n) for cell, n in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join(
            [self.header(), "", rows[0], "  ".join("-" * n for n in widths), *rows[1:]]
        )

    def rst(self):
        """The table for the documentation."""
        lines = [".. list-table::", "   :header-rows: 1", "   :widths: 34 10 24 8 8 6 10", ""]
        for cells in [HEAD, *(row.cells() for row in self.rows)]:
            lines += [
                f"   {mark} - {cell}".rstrip() for mark, cell in zip("*      ", cells, strict=True)
            ]
        return "\n".join([f"{self.header()}.", "", *lines])

    def markdown(self):
        """The rows of README, with fewer columns."""
        lines = ["| what | ours | beside | ratio |", "|---|---|---|---|"]
        for row in self.rows:
            if row.in_readme:
                what, ours, reference, ratio, *_ = row.cells()
                lines.append(f"| {what} | {ours} | {reference} | {ratio} |")
        return "\n".join([f"{self.header()}.", "", *lines])

    def write(self, path):
        """Put the table into a file, between its two lines with the words "speed table"."""
        path = Path(path)
        mark = _MARKS.get(path.suffix)
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        found = [
            i for i, line in enumerate(lines) if mark and line.startswith(f"{mark} speed table")
        ]
        if len(found) != 2:
            raise SystemExit(
                f"SKATR_TABLE: {path} has {len(found)} lines that begin with '{mark} speed table', "
                "expected two in an .rst or .md file, between which the table is written"
            )
        table = self.rst() if path.suffix == ".rst" else self.markdown()
        kept = lines[: found[0] + 1], lines[found[1] :]
        path.write_text("\n".join([*kept[0], "", table, "", *kept[1], ""]), encoding="utf-8")


def _seconds_of(call):
    start = time.perf_counter()
    told = call()
    took = time.perf_counter() - start
    return told if isinstance(told, float) else took


def processor():
    """Name of the processor, as far as the system tells it, and how it multiplies bfloat16."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    name = names[0] if names else platform.processor() or platform.machine()
    return name, [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags]


TABLE = Table()


def write_all():
    """Write the table wherever SKATR_TABLE asks for it."""
    for path in filter(None, os.environ.get("SKATR_TABLE", "").split(os.pathsep)):
        TABLE.write(path)
