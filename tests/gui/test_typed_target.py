"""What somebody types as the target of a draft."""

from __future__ import annotations

import pytest

from quantailor.app.steps import PlanOptions
from quantailor.errors import OptionError
from quantailor.gui.elements.frontier import size_ticks
from quantailor.gui.pages.choose.rule_dialog import with_target


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [("4.5 GiB", "size_bytes", int(4.5 * 2**30)), ("4.25bpw", "bits_per_weight", 4.25), (" 0.01 nats ", "kld_nats", 0.01)],
)
def test_a_target_is_typed_in_any_unit(text: str, field: str, value: float) -> None:
    options = with_target(PlanOptions(like="Q4_K_M", ties=("qkv",)), text)
    wanted = {"size_bytes": None, "bits_per_weight": None, "kld_nats": None, "like": None, field: value}
    assert {name: getattr(options, name) for name in wanted} == wanted
    assert options.ties == ("qkv",)


def test_a_target_that_is_none_is_refused() -> None:
    with pytest.raises(OptionError, match="'small' is not a size"):
        with_target(PlanOptions(), "small")


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (146_739_904, 291_543_744, ["140 MiB", "160 MiB", "180 MiB", "200 MiB", "220 MiB", "240 MiB", "260 MiB"]),
        (int(0.7 * 2**30), int(3.2 * 2**30), ["1 GiB", "1.50 GiB", "2 GiB", "2.50 GiB", "3 GiB"]),
        (int(4.1 * 2**20), int(16.3 * 2**20), ["6 MiB", "8 MiB", "10 MiB", "12 MiB", "14 MiB", "16 MiB"]),
        (2**20, 300 * 2**20, ["1 MiB", "2 MiB", "5 MiB", "10 MiB", "20 MiB", "50 MiB", "100 MiB", "200 MiB"]),
        (5_000_000, 5_000_001, []),
    ],
)
def test_an_axis_of_sizes_has_round_ones_to_read_off(low: int, high: int, said: list[str]) -> None:
    ticks = size_ticks(low, high)
    assert [text for _, text in ticks][: len(said)] == said
    assert all(low <= n_bytes <= high for n_bytes, _ in ticks)
