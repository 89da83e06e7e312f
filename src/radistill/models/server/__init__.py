"""Models that another program serves over HTTP: text and log-probabilities of theirs, without their weights here."""
