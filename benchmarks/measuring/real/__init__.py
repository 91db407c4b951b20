"""Methods on real language models, cell by cell: `python -m acdc.benchmarks.measuring.real` writes docs/real.

A cell is one method on one task of one model: its ranking is cut at fixed shares of all edges, and each circuit is
measured on held-out prompts. Where the method scores single prompts it is cut twice: by the mean of the scores'
absolute values, as is the default, and by the absolute value of their mean, as the papers rank. A search goes down to
the smallest share, by KL, and the circuits on its way are measured: one front for all shares and both measures. Every
cell has a file of its own, written when it is done, so that the command goes on from where it was stopped, also within
a search, and several processes may share the work. Which cells are missing stands in the report. What else could be
done in the processor time of that search (`rivals`) is measured after it.
"""
