"""Our scores beside those of other tools: same random-weight model, same pairs, same metric, edge by edge.

The tools' requirements exclude each other, so each has a virtual environment of its own. What passes between the
environments is a folder: a model written by `save_pretrained`, the pairs, and what is to be done go in, and a JSON
file with a number for every edge comes out. Each `run_*.py` runs in its tool's environment, where `acdc` is not
installed, and turns the tool's names, signs and directions into ours; it imports nothing from here but `exchange`.

    python -m acdc.benchmarks.measuring.peers -o docs/peers
"""
