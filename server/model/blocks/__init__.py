"""The kinds of blocks that native kernels run: each folder has a kind's recogniser, spec, trial and memory.

``table.py`` lists the kinds. The other modules here are what kinds share: what the family's own modules computed
(``capture.py``), the interface of a mixer (``mixer.py``), and a trial of one layer (``layer_trial.py``).
"""
