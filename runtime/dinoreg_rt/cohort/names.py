"""Names in the output folder of a cohort besides the folders of its pairs."""

from __future__ import annotations

TABLE, FAILURES, PAGE = "cohort.csv", "failures.csv", "index.html"
#: Folder of locks, scores and failures.
STATE = ".cohort"
#: Folder of the folders of the pairs if the results are BIDS derivatives, and their description.
RUNS, DESCRIPTION = "pairs", "dataset_description.json"
