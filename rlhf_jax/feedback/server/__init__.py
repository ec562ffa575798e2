"""The labelling server (`app`, served by `run`), and simulated annotators that use it as people do (`simulated`)."""
