"""A merge's memory: under what its plan states, and no more for a model nine times as large."""

from benchmarks.memory import measure


def test_peak_memory_is_stated_and_flat(tmp_path):
    small, large = (measure(size, tmp_path) for size in ("20M", "0.1B"))
    assert large.input_bytes > 8 * small.input_bytes
    for merge in (small, large):
        assert merge.peak_bytes <= merge.stated_bytes <= 400_000_000
    assert large.peak_bytes - small.peak_bytes < 30_000_000
