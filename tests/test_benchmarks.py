"""The table of the benchmarks, and the references that ours is timed beside."""

import numpy as np
import pytest
import torch

from tests.benchmarks import public
from tests.benchmarks.references import BareFlow, PlainJEPA, draw_masks
from tests.benchmarks.table import Table, counter


def test_ratios_are_medians_of_pairs():
    ours, theirs = iter([2.0, 9.0, 2.0]), iter([4.0, 4.0, 8.0])
    table = Table()
    (row,) = table.compare(
        "a", lambda: next(ours), {"b": lambda: next(theirs)}, limit=0.5, pairs=3, warm_up=False
    )
    assert (row.ours, row.reference, row.ratio, row.met) == (2.0, 4.0, 0.5, True)


def test_a_missed_limit_fails_after_its_row():
    table = Table()
    with pytest.raises(AssertionError, match="above the limit: memory"):
        table.add("memory", 2.0, unit="GB", limit=1.5)
    assert table.rows[0].cells()[4:6] == ["1.5 GB", "**no**"]


def test_the_table_is_written_between_its_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(Table, "header", lambda self: "today")
    table = Table()
    table.add("step", 0.25, 1.0, against="plain loop", limit=0.5, in_readme=True)
    table.add("other", 0.002)
    for name, mark in (("a.rst", ".."), ("b.md", "<!--")):
        path = tmp_path / name
        path.write_text(
            f"before\n{mark} speed table, begins\nold\n{mark} speed table ends\nafter\n"
        )
        table.write(path)
        table.write(path)
        text = path.read_text()
        assert text.startswith("before\n") and text.endswith("after\n")
        assert "old" not in text and text.count("250 ms") == 1
        assert ("other" in text) == (name == "a.rst")
    (tmp_path / "c.rst").write_text("nothing\n")
    with pytest.raises(SystemExit, match=r"c\.rst has 0 lines"):
        table.write(tmp_path / "c.rst")


def test_attention_is_counted(torch_seed):
    q = torch.randn(2, 3, 50, 8, requires_grad=True)
    with counter() as counted:
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    assert counted.get_total_flops() == 3.5 * 4 * 2 * 3 * 50 * 50 * 8


@pytest.mark.parametrize("per_sample", [False, True])
def test_masks_of_the_plain_loop_part_the_patches(per_sample, torch_seed):
    pairs = draw_masks(5, (7, 7, 3), ((2, (0.6, 0.8)), (8, (0.1, 0.2))), per_sample)
    for seen, hidden in pairs:
        assert len(seen) == len(hidden) == 5
        for one, two in zip(seen.tolist(), hidden.tolist(), strict=True):
            assert not set(one) & set(two)
            assert per_sample or set(one) | set(two) == set(range(147))
        assert per_sample == (len(set(map(tuple, hidden.tolist()))) > 1)


def test_the_plain_loop_learns(torch_seed):
    X = 30 * torch.randn(8, 8, 8, 12) - 20
    plain = PlainJEPA(X.shape[1:], (2, 2, 4), 24, depth=1)
    losses = [loss for _ in range(8) for loss in plain.epoch(X, 4)]
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    moved = zip(plain.target.parameters(), plain.encoder.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in moved)
    assert plain.summaries(X).shape == (8, 24)


def test_bare_flow_learns(rng, torch_seed):
    y = rng.uniform(-1, 1, size=(64, 2))
    X = np.float32(y @ rng.normal(size=(2, 5)))
    bare = BareFlow(X, y)
    before = bare.log_prob(X, y).mean()
    for _ in range(3):
        bare.epoch()
    assert bare.log_prob(X, y).mean() > before
    assert bare.sample(X[:3], 4).shape == (3, 4, 2)


def test_a_wrong_checkout_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("SKATR_PUBLIC", raising=False)
    assert public._load() is None
    (tmp_path / "src" / "networks").mkdir(parents=True)
    monkeypatch.setenv("SKATR_PUBLIC", str(tmp_path))
    lacking = "without src/models/jepa, src/utils/masks, src/networks/inn$"
    with pytest.raises(SystemExit, match=f"SKATR_PUBLIC: expected a checkout.*{lacking}"):
        public._load()
