"""What many judgements say together: agreement, scores, the reliability of annotators."""
