"""Many pairs: from a table or a BIDS folder to results, scores and a list of failures."""
