"""What a student finds and what it costs: sets, ranking, measures, the depth curve, reports."""
