"""Sweeps over signed strengths: what a method does to a behaviour, and what it costs.

The modules, in the order in which a sweep passes through them:

    config       the sweep file
    strengths    signed: listed, at equal ratios, or by their KL divergence from k = 0
    levels       strengths at which a distance from k = 0 has given values
    measuring    the part of the file that says how something is measured
    reading      from the file to the configuration, every problem at once
    items        what is measured on
    samples      figures per item, and their intervals
    measures     choices by log-probability, perplexity
    answers      generated answers, scored by a rule, a function or a judge
    tasks        tasks of lm-eval
    identity     what decides the figures, as one digest
    journal      what has been measured so far, so that a killed sweep goes on
    lab          what the file names, opened
    divergence   how far a model is from the one at k = 0, the cost that all methods have in common
    equal_cost   methods compared where they cost as much
    running      all methods at all strengths
    picking      the largest effect within a budget
    results      what came of it
    tables       for the terminal
    files        JSON and CSV
    evaluations  files that lie beside versions
    plots        curves and the Pareto front
"""
