"""What a router's own log tells of other policies, on recorded outcomes."""

import argparse

from simulations import savings


def test_the_table_has_three_rows_for_each_policy_and_the_truth_in_each(capsys):
    options = argparse.Namespace(
        data="wheel", limit=150, seeds=2, rated=0.8, floor=0.2, usd_per_quality=0.004
    )
    savings.run(options)
    lines = capsys.readouterr().out.splitlines()
    assert lines.pop().startswith("As routed: quality ")
    assert not lines.pop()
    names = [line.split("|")[1].strip() for line in lines[2:]]
    assert names[::3] == [
        "always llama-3.1-8b-instruct",
        "always mistral-large-2512",
        "always gemini-2.5-pro",
        "uniform random",
    ]
    assert len(lines) == 2 + 3 * 4
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert all(float(line.split("|")[3]) for line in lines[2:])
