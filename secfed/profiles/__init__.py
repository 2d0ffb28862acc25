"""What a site's machine can do, and what a study can ask of it.

``facts`` reads memory and cores; ``profile`` is the file that a site writes and gives
away; ``measure`` times real training steps on made-up tokens; ``estimate`` turns
timings into a round; ``assign`` chooses what all sites do alike (steps, length, bits
of the base) and what each does for itself (rank, micro-batch).

What is chosen for all is a part of the study, so it is fixed when the sites approve
the study's digest. What a site chooses for itself afterwards changes no sum and no
plan: micro-batches and threads are in no study.
"""
