"""Programs that run in the environments of other packages; never imported here."""
